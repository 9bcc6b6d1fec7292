"""Teaches a generator's encoder, before the first step of training, to tell the groups of its data set apart by a picture.

Untrained, the encoder gives almost the same latent for every picture, and what little differs is content, not style. The denoising loss, which is
mostly noise, needs thousands of passes through the UNet to find that out; this needs none.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conditions import Condition, HypernetworkEncoder

TEMPERATURE = 0.1  # of the softmax over similarities
RATE = 1e-3
WARMUP = 20  # steps

Pairs = Callable[[int], tuple[Tensor, Tensor]]
"""Of a step's number: two pictures [b, ...] of each of b different groups, as the encoder takes them."""


def contrastive_loss(first: Tensor, second: Tensor) -> Tensor:
    """Cross entropy of finding each latent's companion [b, width] among the other group's b ones, both ways (van den Oord et al. 2018, InfoNCE)."""
    similarity = F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).T / TEMPERATURE
    companions = torch.arange(len(similarity), device=similarity.device)
    return (F.cross_entropy(similarity, companions) + F.cross_entropy(similarity.T, companions)) / 2


def taught_parameters(encoder: HypernetworkEncoder) -> list[nn.Parameter]:
    """What `teach` changes: all that an image passes through."""
    parts = encoder.adapters["image"], encoder.adapter_norms["image"], encoder.mlp, encoder.norm
    return [parameter for part in parts for parameter in part.parameters()]


def teach(encoder: HypernetworkEncoder, pairs: Pairs, steps: int) -> Iterator[float]:
    """Trains the encoder on image conditions, yields each step's loss. Its null and its other kinds of conditions stay as they are."""
    optimizer = torch.optim.AdamW(taught_parameters(encoder))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        first, second = pairs(step)
        latents = encoder(Condition(image=torch.cat([first, second])))
        loss = contrastive_loss(*latents.chunk(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield float(loss.detach())
