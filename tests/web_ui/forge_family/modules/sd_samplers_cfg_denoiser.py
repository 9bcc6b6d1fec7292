"""Guidance: the prompts' part of it is the backend's.

CFGDenoiser                      Forge 34    reForge 33
CFGDenoiser.update_inner_model   Forge 93    reForge 73
CFGDenoiser.forward              Forge 156   reForge 113
"""
from types import SimpleNamespace

from modules import sd_models, sd_samplers_common, shared
from modules.prompt_parser import reconstruct_cond_batch, reconstruct_multicond_batch
from modules.script_callbacks import CFGDenoiserParams, cfg_denoiser_callback
from torch import nn
from web_ui.sampling import InterruptedException


class CFGDenoiser(nn.Module):
    def __init__(self, sampler):
        super().__init__()
        self.sampler, self.p, self.model_wrap = sampler, None, None
        self.step, self.steps, self.total_steps = 0, None, None

    @property
    def inner_model(self):
        if self.model_wrap is None:
            self.model_wrap = SimpleNamespace(inner_model=shared.sd_model)
        return self.model_wrap

    def update_inner_model(self):
        self.model_wrap = None
        self.sampler.sampler_extra_args["cond"], self.sampler.sampler_extra_args["uncond"] = self.p.get_conds()

    def forward(self, x, sigma, uncond, cond, cond_scale, s_min_uncond, image_cond):
        if shared.state.interrupted or shared.state.skipped:
            raise InterruptedException
        if sd_samplers_common.apply_refiner(self, x):
            cond, uncond = self.sampler.sampler_extra_args["cond"], self.sampler.sampler_extra_args["uncond"]
        composition, cond = reconstruct_multicond_batch(cond, self.step)
        uncond = None if uncond is None else reconstruct_cond_batch(uncond, self.step)
        params = CFGDenoiserParams(x, image_cond, sigma, shared.state.sampling_step, shared.state.sampling_steps, cond, uncond, self)
        cfg_denoiser_callback(params)
        if self.step % 2 and s_min_uncond > 0 and sigma[0] < s_min_uncond:
            cond_scale = 1.0
        denoised = sd_models.sample_function(self, params, cond_scale, composition)
        self.sampler.last_latent = denoised
        self.step += 1
        return denoised
