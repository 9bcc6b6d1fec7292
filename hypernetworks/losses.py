"""What training minimises."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = {"mse": F.mse_loss, "huber": F.smooth_l1_loss, "l1": F.l1_loss}


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


def denoising_loss(predicted: Tensor, target: Tensor, weights: Tensor, kind: str = "mse") -> Tensor:
    """Mean over the batch of weight [b] times the mean error of a sample [c, h, w], in float32."""
    errors = KINDS[kind](predicted.float(), target.float(), reduction="none").flatten(1).mean(1)
    return (errors * weights).mean()
