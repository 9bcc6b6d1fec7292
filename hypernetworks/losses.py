"""What training minimises."""
from __future__ import annotations

import importlib
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import ConfigError

Errors = Callable[[Tensor, Tensor], Tensor]
"""From (predicted, target), each [b, c, h, w] float32, to the error of each value [b, c, h, w], or of each sample [b]."""


def _log_cosh(predicted: Tensor, target: Tensor) -> Tensor:
    """ln cosh d, written so that no large d overflows."""
    distance = (predicted - target).abs()
    return distance + F.softplus(-2 * distance) - math.log(2)


KINDS: dict[str, Errors] = {
    "mse": lambda predicted, target: F.mse_loss(predicted, target, reduction="none"),
    "l1": lambda predicted, target: F.l1_loss(predicted, target, reduction="none"),
    "log_cosh": _log_cosh,
}


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """sqrt(a) x + sqrt(1 - a) e for latents [b, c, h, w] and a [b] (Ho et al. 2020, equation 4)."""
    a = alphas_cumprod.view(-1, 1, 1, 1)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


def denoising_target(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, prediction_type: str) -> Tensor:
    """What the UNet is to predict: the noise, or v = sqrt(a) e - sqrt(1 - a) x (Salimans & Ho 2022)."""
    if prediction_type == "epsilon":
        return noise
    a = alphas_cumprod.view(-1, 1, 1, 1)
    return a.sqrt() * noise - (1 - a).sqrt() * latents


def timestep_weights(alphas_cumprod: Tensor, weighting: str, gamma: float, prediction_type: str) -> Tensor:
    """[b] weights of the samples' errors by their noise.

    "min_snr": see `min_snr_weights`. "debiased": 1 / sqrt(SNR) (Yu et al. 2023). "p2": 1 / (1 + SNR) (Choi et al. 2022). "none": 1. These
    are for errors of the noise; an error of v counts SNR / (SNR + 1) as much, which is what it makes of the noise.
    """
    if weighting == "min_snr":
        return min_snr_weights(alphas_cumprod, gamma, prediction_type)
    signal, noise = alphas_cumprod, 1 - alphas_cumprod
    if weighting == "debiased":
        return (signal * noise).sqrt() if prediction_type == "v_prediction" else (noise / signal.clamp_min(1e-8)).sqrt()
    if weighting == "p2":
        return signal * noise if prediction_type == "v_prediction" else noise
    return torch.ones_like(alphas_cumprod)


def min_snr_weights(alphas_cumprod: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """[b] weights min(SNR, gamma) / SNR, or / (SNR + 1) for v-prediction (Hang et al. 2023); 1 everywhere for gamma 0.

    Written without an SNR, which is infinite or zero at the ends of some schedules.
    """
    if gamma <= 0:
        return torch.ones_like(alphas_cumprod)
    signal, noise = alphas_cumprod, 1 - alphas_cumprod
    capped = torch.minimum(signal, gamma * noise)  # min(SNR, gamma) * noise
    if prediction_type == "v_prediction":
        return capped
    return torch.where(signal > 0, capped / signal.clamp_min(1e-12), 1.0)


def huber_deltas(alphas_cumprod: Tensor, timesteps: Tensor, total: int, delta: float, schedule: str) -> Tensor:
    """[b] the error from which Huber's loss is linear, by the samples' noise (Khrapov et al. 2024): "constant"; "exponential", from 1 without
    noise down to delta; "snr", (1 - delta) / (1 + sigma)² + delta. `total` is the number of timesteps."""
    if schedule == "exponential":
        return delta ** (timesteps / total)
    if schedule == "snr":
        sigma = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()  # infinite at zero terminal SNR, where delta is left
        return (1 - delta) / (1 + sigma) ** 2 + delta
    return torch.full_like(alphas_cumprod, delta)


def huber(predicted: Tensor, target: Tensor, delta: float | Tensor) -> Tensor:
    """d² / 2 for errors d below delta, delta (|d| - delta / 2) from there on; delta is one number or [b]."""
    delta = torch.as_tensor(delta, device=predicted.device).view(-1, *[1] * (predicted.dim() - 1))
    distance = (predicted - target).abs()
    return torch.where(distance < delta, 0.5 * distance * distance, delta * (distance - 0.5 * delta))


def denoising_loss(
    predicted: Tensor, target: Tensor, weights: Tensor, kind: str | Errors = "mse", delta: float | Tensor = 1.0, area: Tensor | None = None
) -> Tensor:
    """Mean over the batch of weight [b] times the mean error of a sample [c, h, w], in float32.

    `kind` is a name ("huber" with its `delta`, see `huber`) or a user's own `Errors`; `area` [b, 1, h, w] weighs the places of a picture.
    Raises `ConfigError` where a user's function gives something of another shape.
    """
    predicted, target = predicted.float(), target.float()
    if callable(kind):
        errors = _own_errors(kind, predicted, target, area is not None)
    else:
        errors = huber(predicted, target, delta) if kind == "huber" else KINDS[kind](predicted, target)
    if area is not None:
        errors = errors * area
    return (errors.flatten(1).mean(1) * weights).mean()


def own_loss(path: str) -> Errors:
    """The function that a dotted path such as `my_losses.charbonnier` names. Raises `ConfigError` where there is none."""
    module, _, name = path.strip().rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # ValueError: an empty name; TypeError: a relative one
        raise ConfigError(
            f"Own loss: {path!r} is not a function that Python finds ({error}); write module.function, and have the module on its path."
        ) from None
    if not callable(found):
        raise ConfigError(f"Own loss: {path!r} is no function but {type(found).__name__}.")
    return found


def _own_errors(function: Errors, predicted: Tensor, target: Tensor, masked: bool) -> Tensor:
    """[b, c, h, w], or [b, 1] for a function that gives one error for each sample."""
    errors = function(predicted, target)
    shape = tuple(errors.shape) if isinstance(errors, Tensor) else type(errors).__name__
    if shape == tuple(predicted.shape):
        return errors
    if shape == (len(predicted),) and not masked:
        return errors[:, None]
    wanted = "one error for each value" + ("" if masked else ", or for each sample")
    raise ConfigError(f"Own loss: the function gives {shape} for predictions {tuple(predicted.shape)}; wanted is {wanted}.")
