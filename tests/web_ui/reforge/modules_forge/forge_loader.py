"""A checkpoint as reForge holds it: sgm's or ldm's model around Forge's objects.

ForgeSD                reForge 174
ForgeSD.shallow_copy   reForge 181
"""
from types import SimpleNamespace

import torch
from ldm_patched.modules import model_management
from ldm_patched.modules.model_base import BaseModel
from ldm_patched.modules.model_patcher import ModelPatcher
from modules import shared
from torch import nn
from web_ui.parts import Autoencoder, TextEncoder
from web_ui.unet import UNetModel


class ForgeSD:
    def __init__(self, unet, clip, vae, clipvision):
        self.unet, self.clip, self.vae, self.clipvision = unet, clip, vae, clipvision

    def shallow_copy(self):
        return ForgeSD(self.unet, self.clip, self.vae, self.clipvision)


class SdModel(nn.Module):
    def __init__(self, info):
        super().__init__()
        self.sd_checkpoint_info, self.sd_model_hash = info, info.calculate_shorthash()
        self.is_sd1, self.is_sd2, self.is_sdxl, self.is_sd3 = (info.family == family for family in ("sd1", "sd2", "sdxl", "sd3"))
        unet = UNetModel(info, in_place=True)
        vae, text = Autoencoder(), TextEncoder(info.context_width)
        self.forge_objects = ForgeSD(
            ModelPatcher(BaseModel(None, info.prediction, unet_model=unet)), SimpleNamespace(patcher=ModelPatcher(text), cond_stage_model=text),
            SimpleNamespace(patcher=ModelPatcher(vae), first_stage_model=vae, device=torch.device("cpu"), vae_dtype=torch.float32), None,
        )  # fmt: skip
        self.forge_objects_original = self.forge_objects.shallow_copy()
        self.forge_objects_after_applying_lora = self.forge_objects.shallow_copy()

    def get_learned_conditioning(self, batch):
        model_management.load_models_gpu([self.forge_objects.clip.patcher])
        return torch.stack([self.forge_objects.clip.cond_stage_model(text, shared.opts.emphasis) for text in batch])

    def decode(self, latents):
        model_management.load_models_gpu([self.forge_objects.vae.patcher])
        return self.forge_objects.vae.first_stage_model.decoder(latents / 0.18215)
