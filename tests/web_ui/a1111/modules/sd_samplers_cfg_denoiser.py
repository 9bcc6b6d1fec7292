"""Guidance: all prompts' rows, then all negative prompts', in one evaluation or in several.

CFGDenoiser                      A1111 33
CFGDenoiser.update_inner_model   A1111 88
CFGDenoiser.combine_denoised     A1111 69
CFGDenoiser.forward              A1111 151
catenate_conds                   A1111 11
subscript_cond                   A1111 18

What becomes of the UNet's output is k_diffusion/external.py: CompVisDenoiser and CompVisVDenoiser.
"""
import torch
from modules import sd_samplers_common, shared
from modules.prompt_parser import DictWithShape, reconstruct_cond_batch, reconstruct_multicond_batch
from modules.script_callbacks import CFGDenoiserParams, cfg_denoiser_callback
from torch import nn
from web_ui.sampling import InterruptedException


def catenate_conds(conds):
    if not isinstance(conds[0], dict):
        return torch.cat(conds)
    return DictWithShape({key: torch.cat([cond[key] for cond in conds]) for key in conds[0]})


def subscript_cond(cond, a, b):
    return cond[a:b] if not isinstance(cond, dict) else {key: value[a:b] for key, value in cond.items()}


class CFGDenoiser(nn.Module):
    def __init__(self, sampler):
        super().__init__()
        self.sampler, self.p = sampler, None
        self.step, self.steps, self.total_steps = 0, None, None

    def update_inner_model(self):
        self.sampler.sampler_extra_args["cond"], self.sampler.sampler_extra_args["uncond"] = self.p.get_conds()

    def inner_model(self, x, sigma, cond):
        """The denoised picture."""
        alphas = shared.sd_model.alphas_cumprod
        sigmas = ((1 - alphas) / alphas) ** 0.5
        t = (sigma[:, None] - sigmas).abs().argmin(1)
        given = cond if isinstance(cond, dict) else {"c_crossattn": [cond]}
        across = sigma[:, None, None, None]
        out = shared.sd_model.apply_model(x / (across**2 + 1) ** 0.5, t, given)
        if shared.sd_model.parameterization == "v":
            return x / (across**2 + 1) - out * across / (across**2 + 1) ** 0.5
        return x - out * across

    def combine_denoised(self, x_out, conds_list, uncond, cond_scale):
        negative = x_out[-uncond.shape[0] :]
        denoised = negative.clone()
        for picture, parts in enumerate(conds_list):
            for place, weight in parts:
                denoised[picture] += (x_out[place] - negative[picture]) * (weight * cond_scale)
        return denoised

    def forward(self, x, sigma, uncond, cond, cond_scale, s_min_uncond, image_cond):
        if shared.state.interrupted or shared.state.skipped:
            raise InterruptedException
        if sd_samplers_common.apply_refiner(self):
            cond, uncond = self.sampler.sampler_extra_args["cond"], self.sampler.sampler_extra_args["uncond"]
        conds_list, tensor = reconstruct_multicond_batch(cond, self.step)
        uncond = reconstruct_cond_batch(uncond, self.step)
        batch_size = len(conds_list)
        rows = [picture for picture, parts in enumerate(conds_list) for _ in parts]
        x_in, sigma_in = torch.cat([x[rows], x]), torch.cat([sigma[rows], sigma])
        params = CFGDenoiserParams(x_in, None, sigma_in, shared.state.sampling_step, shared.state.sampling_steps, tensor, uncond, self)
        cfg_denoiser_callback(params)
        x_in, sigma_in, tensor, uncond = params.x, params.sigma, params.text_cond, params.text_uncond
        skip_uncond = bool(self.step % 2 and s_min_uncond > 0 and sigma[0] < s_min_uncond)
        if skip_uncond:
            x_in, sigma_in = x_in[:-batch_size], sigma_in[:-batch_size]
        x_out = self._evaluated(x_in, sigma_in, tensor, uncond, batch_size, skip_uncond)
        if skip_uncond:
            x_out = torch.cat([x_out, torch.stack([x_out[parts[0][0]] for parts in conds_list])])
        denoised = self.combine_denoised(x_out, conds_list, uncond, 1.0 if skip_uncond else cond_scale)
        self.sampler.last_latent = denoised
        self.step += 1
        return denoised

    def _evaluated(self, x, sigma, tensor, uncond, batch_size, skip_uncond):
        """Rows that have equally many tokens may share an evaluation."""
        together = shared.opts.batch_cond_uncond
        if tensor.shape[1] == uncond.shape[1] or skip_uncond:
            cond = tensor if skip_uncond else catenate_conds([tensor, uncond])
            ends = range(0, len(x), len(x) if together else batch_size)
            return torch.cat([self.inner_model(x[a : a + ends.step], sigma[a : a + ends.step], subscript_cond(cond, a, a + ends.step)) for a in ends])
        length = tensor.shape[0]
        at_once = 2 * batch_size if together else batch_size
        parts = [(a, min(a + at_once, length)) for a in range(0, length, at_once)]
        out = [self.inner_model(x[a:b], sigma[a:b], subscript_cond(tensor, a, b)) for a, b in parts]
        return torch.cat([*out, self.inner_model(x[length:], sigma[length:], uncond)])
