"""The seam between the project and whatever runs the model: a web UI, or diffusers.

Everything above this file speaks to a `Host`; everything that knows a host's own names lives in `hosts/`.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image


@dataclass(frozen=True)
class ModelFacts:
    """What is loaded. `family` is "sd1", "sd2" or "sdxl"; `prediction_type` is "epsilon" or "v_prediction"."""

    name: str
    hash: str
    family: str
    prediction_type: str
    resolution: int  # side in pixels of the pictures that the model was trained on
    latent_factor: int = 8  # pixels per latent cell
    vae: str = ""
    clip_skip: int = 1


@dataclass
class Conditioning:
    """What the UNet is told: `context` [b, tokens, width] and, for SDXL, `pooled` [b, width]."""

    context: torch.Tensor
    pooled: torch.Tensor | None = None

    def rows(self, index: Sequence[int]) -> Conditioning:
        """The same rows in another order, repeated or left out."""
        index = list(index)
        return Conditioning(self.context[index], None if self.pooled is None else self.pooled[index])

    @staticmethod
    def join(parts: Sequence[Conditioning]) -> Conditioning:
        """One batch out of several."""
        pooled = [part.pooled for part in parts]
        return Conditioning(
            torch.cat([part.context for part in parts]), None if pooled[0] is None else torch.cat(pooled)
        )


@dataclass(frozen=True)
class PictureSize:
    """SDXL's size conditioning in pixels, (height, width) or (top, left); other families ignore it."""

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]


@dataclass(frozen=True)
class GenerationRequest:
    """One txt2img job. The pictures have the seeds `seed`, `seed + 1`, ...

    `prompts`, where given, holds one literal prompt for each of the `count` pictures and takes the place of `prompt`.
    """

    prompt: str
    negative_prompt: str = ""
    steps: int = 20
    cfg_scale: float = 7.0
    width: int = 512
    height: int = 512
    seed: int = 0
    count: int = 1
    prompts: tuple[str, ...] = ()


StepCallback = Callable[[int, int], None]
"""Called before each evaluation of the UNet with (step, steps), step counted from 0."""


@dataclass(frozen=True)
class Folders:
    """Where files live: networks in `networks`, pictures dropped in and training runs below `data`."""

    networks: Path
    data: Path

    @classmethod
    def below(cls, home: Path) -> Folders:
        """The standalone layout: everything in one folder."""
        return cls(home / "networks", home / "data")

    @property
    def runs(self) -> Path:
        """One folder per training run."""
        return self.data / "runs"

    @property
    def pictures(self) -> Path:
        """One folder per set of pictures that was dropped in."""
        return self.data / "pictures"


class Host(Protocol):
    """What a host must offer. Implementations: `hosts/diffusers.py` (standalone)."""

    folders: Folders

    @property
    def model(self) -> ModelFacts:
        """Facts about the loaded model; loads it first where the host is lazy."""

    @property
    def unet(self) -> torch.nn.Module:
        """The module whose forward takes (latents, timesteps, context, ...); hooks go on this one."""

    @property
    def device(self) -> torch.device:
        """Where the UNet computes."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the UNet's weights."""

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """[T] float32 on the CPU: the noise schedule's cumulative product of alphas."""

    @property
    def uncond_rows(self) -> tuple[bool, ...]:
        """Which rows of the UNet evaluation that `on_step` announces see the negative prompt; empty between pictures."""

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Literal text (no emphasis syntax) to conditioning, no gradient, on `device`."""

    def encode_pictures(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[b, 3, h, w] in -1..1 to (mean, log-variance) [b, c, h/8, w/8], both float32 on the CPU and already scaled:
        `mean + exp(logvar / 2) * noise` is what the UNet sees at zero noise."""

    def release_encoders(self) -> None:
        """Text encoder and autoencoder leave the device until they are needed again."""

    def predict(
        self,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: Conditioning,
        sizes: Sequence[PictureSize],
    ) -> torch.Tensor:
        """The UNet's output [b, c, h, w] for noisy latents [b, c, h, w] and integer timesteps [b]."""

    def training(self, gradient_checkpointing: bool = False) -> AbstractContextManager[None]:
        """Within it the UNet is frozen, bare (no LoRA, no network of the last image) and fit for backward; after it
        everything is as it was, also after an exception."""

    def generate(self, request: GenerationRequest, on_step: StepCallback | None = None) -> list[Image.Image]:
        """Pictures from the UNet as it is hooked now. Leaves the process's random state as it was."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Holds the host's job lock. Raises `HostBusy` where the host would rather refuse than wait."""
