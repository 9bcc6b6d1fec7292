"""Euler's method as the web UIs run it, in miniature.

`state.sampling_step` is set behind each step (`callback_state`). So before the evaluation of step i it is i - 1, and 0 for the first two.
The methods are k_diffusion/sampling.py:118 and 159.

InterruptedException   A1111 modules/sd_samplers_common.py:142   Forge modules/sd_samplers_common.py:150   reForge modules/sd_samplers_common.py:170
Sampler                A1111 modules/sd_samplers_common.py:218   Forge modules/sd_samplers_common.py:238   reForge modules/sd_samplers_common.py:262
"""
import torch
from modules import shared


class InterruptedException(BaseException):
    """The user asked to stop."""


class Sampler:
    """Runs `denoiser(x, sigma, ...)` along a job's sigmas."""

    def __init__(self, denoiser, sigmas, second_order=False):
        self.model_wrap_cfg, self.sigmas, self.second_order = denoiser, sigmas, second_order
        self.last_latent = None
        self.sampler_extra_args = {}

    def get_sigmas(self, steps):
        """[steps + 1], evenly spaced in time, with a zero at the end."""
        places = torch.linspace(len(self.sigmas) - 1, 0, steps)
        low, high, share = places.floor().long(), places.ceil().long(), places.frac()
        logs = self.sigmas.log()
        return torch.cat([((1 - share) * logs[low] + share * logs[high]).exp(), torch.zeros(1)])

    def sample(self, p, x, conditioning, unconditional_conditioning):
        sigmas = self.get_sigmas(p.steps)
        return self._launch(p, p.steps, x * sigmas[0], sigmas, conditioning, unconditional_conditioning)

    def sample_img2img(self, p, x, noise, conditioning, unconditional_conditioning, steps):
        planned = int(steps / min(p.denoising_strength, 0.999))
        sigmas = self.get_sigmas(planned)[planned - steps :]
        return self._launch(p, steps, x + noise * sigmas[0], sigmas, conditioning, unconditional_conditioning)

    def _launch(self, p, steps, x, sigmas, conditioning, unconditional_conditioning):
        self.model_wrap_cfg.p, self.model_wrap_cfg.step = p, 0
        self.model_wrap_cfg.steps, self.model_wrap_cfg.total_steps = steps, steps * (2 if self.second_order else 1)
        self.sampler_extra_args = {
            "cond": conditioning, "uncond": unconditional_conditioning, "cond_scale": p.cfg_scale, "s_min_uncond": p.s_min_uncond, "image_cond": None
        }  # fmt: skip
        shared.state.sampling_steps, shared.state.sampling_step = steps, 0
        self.last_latent = x
        try:
            return self._run(x, sigmas)
        except InterruptedException:
            return self.last_latent

    def _run(self, x, sigmas):
        ones = x.new_ones(len(x))
        for step in range(len(sigmas) - 1):
            slope = self._slope(x, sigmas[step], ones)
            shared.state.sampling_step = step
            ahead = x + slope * (sigmas[step + 1] - sigmas[step])
            if self.second_order and sigmas[step + 1] > 0:
                slope = (slope + self._slope(ahead, sigmas[step + 1], ones)) / 2
                ahead = x + slope * (sigmas[step + 1] - sigmas[step])
            x = ahead
        return x

    def _slope(self, x, sigma, ones):
        return (x - self.model_wrap_cfg(x, sigma * ones, **self.sampler_extra_args)) / sigma
