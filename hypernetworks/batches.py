"""What the UNet is shown at each training step: latents, noise, timesteps and conditioning, all pure functions of (seed, step, sample)."""
from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .config import TrainingConfig
from .dataset import Captions, Dataset, Picture, bucket_of, crop_of
from .errors import DatasetError
from .host import Conditioning, Host, PictureSize
from .latents import CaptionStore, LatentStore
from .plan import Plan, Sample, generator_for, random_for, split, timesteps_for

VALIDATION_PICTURES = 8  # at most
VALIDATION_TIMESTEPS = 8  # per held-out picture, spread evenly over the schedule


@dataclass
class Batch:
    """`latents` and `noise` [b, c, h, w], `timesteps` [b] integers, one conditioning row and one size per sample."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    conditioning: Conditioning
    sizes: Sequence[PictureSize]
