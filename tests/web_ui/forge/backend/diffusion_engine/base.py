"""A checkpoint as Forge holds it: parts in patchers, of which every job has its own copies.

ForgeObjects                                    Forge 7
ForgeObjects.shallow_copy                       Forge 14
ForgeDiffusionEngine                            Forge 23
ForgeDiffusionEngine.set_clip_skip              Forge 38
ForgeDiffusionEngine.get_learned_conditioning   Forge 44
"""
from types import SimpleNamespace

import torch
from backend import memory_management
from backend.modules.k_model import KModel
from backend.patcher.base import ModelPatcher
from backend.patcher.unet import UnetPatcher
from modules import shared
from torch import nn
from web_ui.parts import POOLED, Autoencoder, TextEncoder
from web_ui.unet import UNetModel, embedded_time


class ForgeObjects:
    def __init__(self, unet, clip, vae, clipvision):
        self.unet, self.clip, self.vae, self.clipvision = unet, clip, vae, clipvision

    def shallow_copy(self):
        return ForgeObjects(self.unet, self.clip, self.vae, self.clipvision)


class ForgeDiffusionEngine:
    first_stage_model = cond_stage_model = None
    clip_skip = 1

    def __init__(self, info):
        self.sd_checkpoint_info, self.sd_model_hash = info, info.calculate_shorthash()
        self.is_sd1, self.is_sd2, self.is_sdxl, self.is_sd3 = (info.family == family for family in ("sd1", "sd2", "sdxl", "sd3"))
        self.is_inpaint = info.in_channels == 9
        unet = UNetModel(info, in_place=True)
        vae = Autoencoder()
        vae.scaling_factor, vae.shift_factor = 0.18215, None
        text = nn.ModuleDict({"encoder": TextEncoder(info.context_width), "pooled": nn.Linear(info.context_width, POOLED)})
        clip = SimpleNamespace(patcher=ModelPatcher(text), cond_stage_model=text)
        vae = SimpleNamespace(patcher=ModelPatcher(vae), first_stage_model=vae, device=torch.device("cpu"), vae_dtype=torch.float32, latent_channels=4)
        self.forge_objects = ForgeObjects(UnetPatcher(KModel(unet, info.prediction)), clip, vae, None)
        self.forge_objects_original = self.forge_objects.shallow_copy()
        self.forge_objects_after_applying_lora = self.forge_objects.shallow_copy()

    def set_clip_skip(self, clip_skip):
        self.clip_skip = clip_skip

    @torch.inference_mode()
    def get_learned_conditioning(self, prompt):
        memory_management.load_models_gpu([self.forge_objects.clip.patcher])
        text = self.forge_objects.clip.cond_stage_model
        context = torch.stack([text["encoder"](one, shared.opts.emphasis) for one in prompt])
        if not self.is_sdxl:
            return context
        width, height = getattr(prompt, "width", 1024), getattr(prompt, "height", 1024)
        sizes = torch.cat([embedded_time(torch.tensor([number]), 256) for number in (height, width, 0, 0, height, width)], 1)
        return {"crossattn": context, "vector": torch.cat([text["pooled"](context.mean(1)), sizes.expand(len(context), -1)], 1)}

    @torch.inference_mode()
    def decode(self, latents):
        vae = self.forge_objects.vae
        memory_management.load_models_gpu([vae.patcher])
        return vae.first_stage_model.decoder(latents / vae.first_stage_model.scaling_factor)
