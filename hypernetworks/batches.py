"""What the UNet is shown at each training step: latents, noise, timesteps and conditioning, all pure functions of (seed, step, sample)."""
from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .captions import Captions
from .conditions import Condition
from .config import TrainingConfig
from .dataset import Dataset, Picture
from .host import Conditioning, Host, PictureSize
from .latents import CaptionStore, LatentStore
from .plan import Plan, Sample, generator_for, random_for, split, timesteps_for

VALIDATION_PICTURES = 8  # at most
VALIDATION_TIMESTEPS = 8  # for every held-out picture
PREVIEWS = 4  # at most, where the prompts are taken from the captions


@dataclass
class Batch:
    """`latents` and `noise` [b, c, h, w], `timesteps` [b] integers, one row of conditioning and one size per sample; for a generator also
    what weights are to be generated for, one row per sample."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    conditioning: Conditioning
    sizes: Sequence[PictureSize]
    condition: Condition | None = None


class Batches:
    """The batches of one run. `prepare` must run to its end first; it encodes everything that can be encoded beforehand."""

    def __init__(self, host: Host, config: TrainingConfig, dataset: Dataset, processes: int = 1, process: int = 0) -> None:
        """Of every batch, process number `process` of `processes` gets its share."""
        self.host, self.config, self.dataset = host, config, dataset
        self.processes, self.process = processes, process
        self.warnings: list[str] = []
        self.captions = Captions(
            config.caption_template, config.name, config.shared_caption, config.shuffle_tags, config.tag_dropout, config.caption_dropout
        )
        self.latents = LatentStore(host.folders.data / "latents", host, config.resolution, config.bucket_step)
        self.texts = CaptionStore(host, host.folders.data / "captions")

    def prepare(self) -> Iterator[tuple[int, int, str]]:
        """Encodes pictures and fixed captions; yields (done, total, what). Unreadable pictures are left out and named in `warnings`."""
        for done, total in self.latents.prepare(self.dataset.pictures, self.config.crops, self.config.flip):
            yield done, total, "Encoding pictures"
        if self.latents.skipped:
            self.dataset = self.dataset.without(self.latents.skipped)
            self.warnings += left_out(self.latents.skipped)
        self.training, self.held_out = self._split(self.dataset.pictures)
        self.plan = Plan(
            [self.latents.bucket(picture) for picture in self.training], self.config.batch_size * self.processes, self.config.seed,
            self.config.flip, self.config.crops, self.config.gradient_accumulation,
        )
        if self.captions.fixed:
            yield from self._encode_captions()
        else:
            self._warn_of_changing_captions()

    def _split(self, pictures: Sequence[Picture]) -> tuple[list[Picture], list[Picture]]:
        """(training pictures, held-out pictures)"""
        return split(pictures, self.config.validation_share, self.config.seed)

    def _encode_captions(self) -> Iterator[tuple[int, int, str]]:
        for done, total in self.texts.prepare(self._wanted_captions()):
            yield done, total, "Encoding captions"
        self.host.release_encoders()

    def _wanted_captions(self) -> list[str]:
        return [*self.captions.possible(self.dataset.pictures), *map(self._validation_caption, self.held_out)]

    def _warn_of_changing_captions(self) -> None:
        """What captions that are drawn anew cost is measured, not guessed."""
        texts = [self.captions.write(picture, random_for(self.config.seed, 0, 0, "caption")) for picture in self.training]
        texts = (texts * self.config.batch_size)[: self.config.batch_size]
        self.host.encode_prompts(texts)
        started = time.monotonic()
        self.host.encode_prompts(texts)
        took = time.monotonic() - started
        self.warnings.append(
            "Tags are shuffled or dropped anew at every step, so the text encoder stays in memory and runs each time: "
            f"about {1000 * took * self.config.gradient_accumulation:.0f} ms more per step."
        )

    @property
    def batches_per_epoch(self) -> int:
        """Batches until every training picture was shown once."""
        return self.plan.batches_per_epoch

    @property
    def picture_count(self) -> int:
        """Pictures of the dataset, held-out ones included."""
        return len(self.dataset.pictures)

    def at(self, step: int, micro_step: int) -> Batch:
        """The batch of a step (from 1), and of a place in it where gradients are accumulated. A pure function."""
        seed, count = self.config.seed, self.config.batch_size * self.processes * self.config.gradient_accumulation
        samples = self._samples(step, micro_step)
        latents, noises, captions, sizes = [], [], [], []
        for sample in samples:
            picture = self.training[sample.picture]
            latents.append(self._latent(picture, sample.flip, sample.crop, generator_for(seed, step, sample.number, "latent")))
            noises.append(torch.randn(latents[-1].shape, generator=generator_for(seed, step, sample.number, "noise")))
            captions.append(self._caption(picture, step, sample.number))
            sizes.append(self.latents.size(picture, sample.flip, sample.crop))
        timesteps = timesteps_for(seed, step, count, len(self.host.alphas_cumprod))[[sample.number for sample in samples]]
        return self._batch(latents, noises, timesteps, self._conditioning(captions), sizes)

    def _samples(self, step: int, micro_step: int) -> list[Sample]:
        """This process's share of a batch."""
        return self.plan.batch((step - 1) * self.config.gradient_accumulation + micro_step)[self.process :: self.processes]

    def _caption(self, picture: Picture, step: int, number: int) -> str:
        return self.captions.write(picture, random_for(self.config.seed, step, number, "caption"))

    def validation(self) -> list[Batch]:
        """The held-out pictures, a batch each, always with the same timesteps and noise."""
        pictures, total = self.held_out[:VALIDATION_PICTURES], len(self.host.alphas_cumprod)
        batches = []
        for number, picture in enumerate(pictures):
            latent = self._latent(picture, False, 0, None)
            generator = generator_for(self.config.seed, 0, number, "validation noise")
            noises = torch.randn((VALIDATION_TIMESTEPS, *latent.shape), generator=generator)
            conditioning = self._conditioning([self._validation_caption(picture)] * VALIDATION_TIMESTEPS)
            timesteps = torch.tensor(spread_timesteps(VALIDATION_TIMESTEPS, total))
            sizes = [self.latents.size(picture)] * VALIDATION_TIMESTEPS
            batches.append(self._batch([latent] * VALIDATION_TIMESTEPS, list(noises), timesteps, conditioning, sizes))
        return batches

    def preview_prompts(self) -> list[str]:
        """What previews are drawn of: the prompts asked for, else captions, of held-out pictures first."""
        asked = [line.strip() for line in self.config.preview_prompts.splitlines() if line.strip()]
        captions = dict.fromkeys(map(self._validation_caption, [*self.held_out, *self.training]))
        return asked or list(captions)[:PREVIEWS]

    def _validation_caption(self, picture: Picture) -> str:
        return Captions(self.captions.templates[:1], self.config.name, self.config.shared_caption).possible([picture])[0]

    def _latent(self, picture: Picture, flip: bool, crop: int, generator: torch.Generator | None) -> Tensor:
        """[c, h, w] on the CPU: a draw from the autoencoder's distribution, or its mean without a generator."""
        mean, logvar = self.latents.get(picture, flip, crop)
        if generator is None or not self.config.sample_latents:
            return mean
        return mean + (logvar / 2).exp() * torch.randn(mean.shape, generator=generator)

    def _conditioning(self, captions: Sequence[str]) -> Conditioning:
        return self.texts.conditioning(captions) if self.captions.fixed else self.host.encode_prompts(captions)

    def _batch(
        self, latents: list[Tensor], noises: list[Tensor], timesteps: Tensor, conditioning: Conditioning, sizes: Sequence[PictureSize]
    ) -> Batch:
        device = self.host.device
        return Batch(torch.stack(latents).to(device), torch.stack(noises).to(device), timesteps.to(device), conditioning, sizes)


def spread_timesteps(count: int, total: int) -> list[int]:
    """The middles of `count` equal slices of 0..total."""
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def left_out(skipped: Sequence[tuple[Path, str]]) -> list[str]:
    """One sentence for every picture that is not used."""
    return [f"{path.name} was left out: it {reason}." for path, reason in skipped]
