"""The noise that a picture is trained with: how much of it (schedule and timesteps), and what it looks like."""
from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import TrainingConfig
from .errors import ConfigError

_EDGE = 1e-6  # the normal distribution has no value at 0 and 1


def draw_noise(shape: tuple[int, ...], generator: torch.Generator, offset: float = 0.0, pyramid: float = 0.0, levels: int = 6) -> Tensor:
    """Noise [c, h, w] on the CPU.

    `pyramid`: noise of half, a quarter, ... of the size is enlarged and added, each level this much weaker than the one before, and the sum
    brought back to a standard deviation of 1 (multi-resolution noise, Whitaker 2023). `offset`: one more draw for each channel, times this,
    is added everywhere (Guttenberg 2023), so that cells of a channel have the covariance 1 + offset² with themselves and offset² with others.
    """
    noise = torch.randn(shape, generator=generator)
    if pyramid:
        channels, height, width = shape
        for level in range(1, levels + 1):
            small = max(1, height >> level), max(1, width >> level)
            coarse = torch.randn((1, channels, *small), generator=generator)
            noise = noise + pyramid**level * F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)[0]
            if small == (1, 1):
                break
        noise = noise / noise.std()
    if offset:
        noise = noise + offset * torch.randn((shape[0], 1, 1), generator=generator)
    return noise


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """The schedule [T] shifted and scaled so that nothing of the picture is left at its end: sqrt(a) falls from what it was to 0
    (Lin et al. 2024, algorithm 1)."""
    roots = alphas_cumprod.double().sqrt()
    return (((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2).to(alphas_cumprod.dtype)


def noise_schedule(alphas_cumprod: Tensor, config: TrainingConfig, prediction_type: str) -> Tensor:
    """The schedule [T] that a run trains with. Raises `ConfigError` for zero terminal SNR with a model that predicts the noise."""
    if not config.zero_terminal_snr:
        return alphas_cumprod
    if prediction_type != "v_prediction":
        raise ConfigError(
            "Zero terminal SNR (zero_terminal_snr) needs a model that predicts v: out of nothing but noise, predicting the noise teaches nothing."
        )
    return zero_terminal_snr(alphas_cumprod)


def timestep_shape(config: TrainingConfig) -> Callable[[float], float] | None:
    """From a uniform draw to the share of the schedule that is trained on; None where all of it is, evenly."""
    low, high = config.timestep_from, config.timestep_to
    if low >= high:
        raise ConfigError(f"Timesteps must go up: from {low:g} (timestep_from) to {high:g} (timestep_to) leaves none.")
    if config.timestep_distribution == "uniform":
        return None if (low, high) == (0, 1) else lambda draw: low + draw * (high - low)
    normal = NormalDist(config.timestep_mean, config.timestep_spread)

    def logit_normal(draw: float) -> float:
        return low + (high - low) * torch.sigmoid(torch.tensor(normal.inv_cdf(min(max(draw, _EDGE), 1 - _EDGE)))).item()

    return logit_normal
