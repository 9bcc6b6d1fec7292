"""Samplers of diffusers for the standalone host, under the names that web UIs give them."""
from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import ConfigError, ModelUnfit
from .single_file import WANTED

CLASSES = {
    "DDIM": "DDIMScheduler", "Euler": "EulerDiscreteScheduler", "Euler a": "EulerAncestralDiscreteScheduler", "DPM++ 2M": "DPMSolverMultistepScheduler",
    "UniPC": "UniPCMultistepScheduler",
}  # fmt: skip
"""The first one is taken where none is asked for: it is deterministic, and its steps can be told apart."""


def sampler(scheduler: Any, zero_terminal_snr: bool = False, name: str = "") -> Any:
    """A new scheduler with another one's prediction type and noise schedule, or that rescaled so that it ends in noise alone.

    Raises `ModelUnfit` for a schedule of another kind, `ConfigError` for a name that is not in `CLASSES`.
    """
    import diffusers

    found = scheduler.config.get("prediction_type", "epsilon")
    if getattr(scheduler, "alphas_cumprod", None) is None or found not in ("epsilon", "v_prediction"):
        raise ModelUnfit(f"The model's scheduler ({type(scheduler).__name__}, prediction type {found}) is not one of {WANTED}.")
    if name and name not in CLASSES:
        raise ConfigError(f"There is no sampler {name!r} here; there are {', '.join(CLASSES)}.")
    kind = getattr(diffusers, CLASSES[name or next(iter(CLASSES))])
    kept = {name: scheduler.config.get(name, False) for name in ("clip_sample", "set_alpha_to_one")}
    if zero_terminal_snr:
        kept |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}  # sampling has to begin at the last timestep
    known = inspect.signature(kind).parameters
    return kind.from_config(scheduler.config, **{key: value for key, value in kept.items() if key in known})


def step(scheduler: Any, output: torch.Tensor, t: torch.Tensor, latents: torch.Tensor, chances: Sequence[torch.Generator]) -> torch.Tensor:
    """The latents [b, c, h, w] after a step; chance, where the sampler takes any, comes from each picture's own generator."""
    more = {"generator": list(chances)} if "generator" in inspect.signature(scheduler.step).parameters else {}
    return scheduler.step(output, t, latents, **more).prev_sample
