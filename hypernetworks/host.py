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
        """One batch out of several; shorter contexts repeat their last token (A1111 modules/prompt_parser.py, stack_conds)."""
        longest = max(part.context.shape[1] for part in parts)
        pooled = [part.pooled for part in parts]
        contexts = torch.cat([_padded(part.context, longest) for part in parts])
        return Conditioning(contexts, None if pooled[0] is None else torch.cat(pooled))


def _padded(context: torch.Tensor, tokens: int) -> torch.Tensor:
    missing = tokens - context.shape[1]
    return context if not missing else torch.cat([context, context[:, -1:].expand(-1, missing, -1)], dim=1)


@dataclass(frozen=True)
class PictureSize:
    """SDXL's size conditioning in pixels, (height, width) or (top, left); other families ignore it."""

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]


@dataclass(frozen=True)
class GenerationRequest:
    """One txt2img job. The pictures have the seeds `seed`, `seed + 1`, ...

    `prompts`, where given, holds one prompt for each of the `count` pictures and takes the place of `prompt`. With `literal`, a host that
    has an emphasis syntax takes the prompts without it. `zero_terminal_snr` asks for the model's noise schedule as `noise.py` rescales it.
    `sampler` is one of the host's `samplers`, or empty for the one that it usually takes.
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
    literal: bool = True
    zero_terminal_snr: bool = False
    sampler: str = ""


StepCallback = Callable[[int, int], None]
"""Called before each evaluation of the UNet with (step, steps), step counted from 0."""


@dataclass(frozen=True)
class Row:
    """What one row of a UNet evaluation belongs to: a picture's place in the batch, and its negative prompt or its prompt."""

    picture: int
    uncond: bool


@dataclass(frozen=True)
class Folders:
    """Where files live: networks in `networks`, LoRA files made of them in `loras`, pictures dropped in and training runs below `data`."""

    networks: Path
    data: Path
    loras: Path

    @classmethod
    def below(cls, home: Path) -> Folders:
        """The standalone layout: everything in one folder."""
        return cls(home / "networks", home / "data", home / "loras")

    @property
    def runs(self) -> Path:
        """One folder per training run."""
        return self.data / "runs"

    @property
    def pictures(self) -> Path:
        """One folder per set of pictures that was dropped in."""
        return self.data / "pictures"

    @property
    def references(self) -> Path:
        """Reference pictures for generators."""
        return self.data / "references"


class Host(Protocol):
    """What a host must offer. Implementations: `hosts/diffusers.py` (standalone), `hosts/a1111.py`, `hosts/forge.py`."""

    folders: Folders
    client_paths: bool
    """Whether who uses the page or the API may name folders of this machine; else only those of pictures that were sent here."""

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
    def rows(self) -> tuple[Row, ...]:
        """Of the UNet evaluation that `on_step` announces, what each row is; empty between pictures."""

    @property
    def samplers(self) -> tuple[str, ...]:
        """Names of the samplers that a request may ask for."""

    @property
    def captioner(self) -> Callable[[Image.Image], str] | None:
        """Describes a picture (RGB) in words, within `exclusive`; None where the host has none."""

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
        """Pictures from the UNet as it is hooked now. Leaves the process's random state as it was. Raises `Interrupted`."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Holds the host's job lock. Raises `HostBusy` where the host would rather refuse than wait."""

    def report(self, text: str, step: int, steps: int) -> bool:
        """Says how far a long job is, where the host has a place for that. True: the host's user asked to interrupt it."""
