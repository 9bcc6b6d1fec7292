"""The checkpoint that is loaded, ldm's way for Stable Diffusion 1 and 2, sgm's for XL.

model_data                    A1111 602
SdModelData                   A1111 559
SdModelData.get_sd_model      A1111 566
SdModelData.set_sd_model      A1111 586
SkipWritingToConfig           A1111 336
get_closet_checkpoint_match   A1111 173
select_checkpoint             A1111 208
load_model                    A1111 645
reload_model_weights          A1111 795
apply_token_merging           A1111 866
checkpoint_aliases            A1111 25

DiffusionWrapper is ldm/models/diffusion/ddpm.py:1310, OpenAIWrapper sgm/modules/diffusionmodules/wrappers.py:23.
"""
import contextlib

import torch
from modules import devices, shared
from torch import nn
from web_ui.checkpoints import CHECKPOINTS
from web_ui.parts import POOLED, Autoencoder, Posterior, TextEncoder, alphas_cumprod
from web_ui.unet import Block, UNetModel, embedded_time

checkpoint_aliases = CHECKPOINTS


class DiffusionWrapper(nn.Module):
    def __init__(self, unet):
        super().__init__()
        self.diffusion_model, self.conditioning_key = unet, "crossattn" if unet.in_channels == 4 else "hybrid"

    def forward(self, x, t, c_concat=None, c_crossattn=None, c_adm=None):
        return self.diffusion_model(x, t, context=torch.cat(c_crossattn, 1))


class OpenAIWrapper(nn.Module):
    def __init__(self, unet):
        super().__init__()
        self.diffusion_model, self.conditioning_key = unet, "crossattn"  # set by modules/sd_models_xl.py:96, whatever the model

    def forward(self, x, t, c, **kwargs):
        return self.diffusion_model(x, timesteps=t, context=c["crossattn"], y=c["vector"])


class FirstStage(Autoencoder):
    """ldm's gives a distribution, sgm's a draw from it."""

    def __init__(self, draws):
        super().__init__()
        self.draws = draws

    def encode(self, pixels):
        found = Posterior(self.quant_conv(self.encoder(pixels)))
        return found.sample() if self.draws else found


class SdModel(nn.Module):
    """ldm's LatentDiffusion, or sgm's DiffusionEngine, with what the web UI adds (modules/sd_models_types.py)."""

    cond_stage_key = "txt"
    scale_factor = 0.18215
    lowvram = False
    applied_token_merged_ratio = 0

    def __init__(self, info):
        super().__init__()
        self.sd_checkpoint_info, self.sd_model_hash, self.sd_model_checkpoint = info, info.shorthash, info.filename
        self.is_sd1, self.is_sd2, self.is_sdxl = (info.family == family for family in ("sd1", "sd2", "sdxl"))
        self.parameterization = "v" if info.prediction == "v_prediction" else "eps"
        self.model = (OpenAIWrapper if self.is_sdxl else DiffusionWrapper)(UNetModel(info))
        self.cond_stage_model, self.first_stage_model = TextEncoder(info.context_width), FirstStage(draws=self.is_sdxl)
        self.pooled = nn.Linear(info.context_width, POOLED)
        self.register_buffer("alphas_cumprod", alphas_cumprod())
        self.alphas_cumprod_original = self.alphas_cumprod

    def ema_scope(self):
        return contextlib.nullcontext()

    def get_learned_conditioning(self, batch):
        """[b, tokens, width], or for XL a dict with the pooled text and the sizes (modules/sd_models_xl.py:12)."""
        context = torch.stack([self.cond_stage_model(text, shared.opts.emphasis) for text in batch])
        if not self.is_sdxl:
            return context
        width, height = getattr(batch, "width", 1024), getattr(batch, "height", 1024)
        sizes = torch.cat([embedded_time(torch.tensor([number]), 256) for number in (height, width, 0, 0, height, width)], 1)
        return {"crossattn": context, "vector": torch.cat([self.pooled(context.mean(1)), sizes.expand(len(context), -1)], 1)}

    def apply_model(self, x, t, cond):
        return self.model(x, t, cond) if self.is_sdxl else self.model(x, t, **cond)

    def decode(self, latents):
        return self.first_stage_model.decoder(latents / self.scale_factor)


class SdModelData:
    def __init__(self):
        self.sd_model, self.loaded_sd_models = None, []

    def get_sd_model(self):
        if self.sd_model is None and select_checkpoint() is not None:
            load_model()
        return self.sd_model

    def set_sd_model(self, v, already_loaded=False):
        self.sd_model = v
        self.loaded_sd_models = [v, *(loaded for loaded in self.loaded_sd_models if loaded is not v)]


model_data = SdModelData()


class SkipWritingToConfig:
    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc_value, exc_traceback):
        pass


def get_closet_checkpoint_match(search_string):
    return CHECKPOINTS.get(search_string)


def select_checkpoint():
    return CHECKPOINTS.get(shared.opts.sd_model_checkpoint)


def load_model(checkpoint_info=None, already_loaded_state_dict=None):
    model_data.set_sd_model(SdModel(checkpoint_info or select_checkpoint()).eval())
    return model_data.sd_model


def reload_model_weights(sd_model=None, info=None, forced_reload=False):
    """Another model of the same configuration is loaded into the modules that are there, unless the settings keep several."""
    info = info or select_checkpoint()
    current = sd_model or model_data.get_sd_model()
    if current.sd_checkpoint_info is info:
        return current
    kept = next((loaded for loaded in model_data.loaded_sd_models if loaded.sd_checkpoint_info is info), None)
    if kept is not None:
        model_data.set_sd_model(kept, already_loaded=True)
    elif len(model_data.loaded_sd_models) < shared.opts.sd_checkpoints_limit or current.sd_checkpoint_info.config != info.config:
        if len(model_data.loaded_sd_models) >= shared.opts.sd_checkpoints_limit:
            model_data.loaded_sd_models.remove(current)
        load_model(info)
    else:
        current.load_state_dict(SdModel(info).state_dict())
        current.sd_checkpoint_info, current.sd_model_hash, current.sd_model_checkpoint = info, info.shorthash, info.filename
    devices.torch_gc()
    return model_data.sd_model


class MergedBlock(Block):
    """tomesd's: a class that takes the blocks' place. Here each token is merged with its neighbour."""

    def _forward(self, x, context=None):
        merged = self.norm1(x).unflatten(1, (-1, 2)).mean(2)
        x = self.attn1(merged).repeat_interleave(2, 1) + x
        x = self.attn2(self.norm2(x), context=context) + x
        return self.ff(self.norm3(x)) + x


def apply_token_merging(sd_model, token_merging_ratio):
    for part in sd_model.model.diffusion_model.modules():
        if isinstance(part, Block):
            part.__class__ = MergedBlock if token_merging_ratio > 0 else Block
    sd_model.applied_token_merged_ratio = token_merging_ratio
