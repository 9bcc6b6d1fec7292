"""What the UNet is shown at each training step: latents, noise, timesteps and conditioning, all pure functions of (seed, step, sample)."""
from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .captions import Captions
from .conditions import Condition
from .config import TrainingConfig
from .dataset import Dataset, Picture
from .host import Conditioning, Host, PictureSize
from .latents import CaptionStore, LatentStore
from .masks import MaskStore
from .noise import draw_noise, timestep_shape
from .plan import Plan, Sample, generator_for, random_for, split, timesteps_for
from .preview_lines import PreviewLine, captions_as_lines, read_lines
from .repeats import hands_for, read_pictures

VALIDATION_PICTURES = 8  # at most
VALIDATION_TIMESTEPS = 8  # for every held-out picture
LATENT_CHANNELS = 4  # of Stable Diffusion 1, 2 and XL
PREVIEWS = 4  # at most, where the prompts are taken from the captions


@dataclass
class Batch:
    """`latents` and `noise` [b, c, h, w], `timesteps` [b] integers, one row of conditioning and one size per sample; for a generator also
    what weights are to be generated for, one row per sample.

    Where they differ: what each sample counts [b], what each place counts [b, 1, h, w], noise [b, c, h, w] that the UNet sees beside the one
    that it is to find, and whether a sample [b] shows what the model is to keep; `keeping` says that again, to be asked without a wait for the device."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    conditioning: Conditioning
    sizes: Sequence[PictureSize]
    condition: Condition | None = None
    weights: Tensor | None = None
    area: Tensor | None = None
    perturbation: Tensor | None = None
    regular: Tensor | None = None
    keeping: tuple[bool, ...] = ()

    def __len__(self) -> int:
        return len(self.latents)

    def part(self, start: int, stop: int) -> Batch:
        """The samples from `start` on and before `stop`."""
        places = range(len(self))[start:stop]

        def cut(value: Any) -> Any:
            if isinstance(value, Conditioning):
                return value.rows(places)
            return value.select(places) if isinstance(value, Condition) else None if value is None else value[start:stop]

        return Batch(*(cut(getattr(self, field.name)) for field in dataclasses.fields(self)))


class Batches:
    """The batches of one run. `prepare` must run to its end first; it encodes everything that can be encoded beforehand."""

    def __init__(self, host: Host, config: TrainingConfig, dataset: Dataset, processes: int = 1, process: int = 0) -> None:
        """Of every batch, process number `process` of `processes` gets its share."""
        self.host, self.config, self.dataset = host, config, dataset
        self.processes, self.process = processes, process
        self.warnings: list[str] = []
        self.captions = Captions(
            config.caption_template, config.name, config.shared_caption, config.shuffle_tags, config.tag_dropout, config.caption_dropout, config.keep_tags
        )
        self.regular_captions = Captions("[filewords]", "", "", config.shuffle_tags, config.tag_dropout, config.caption_dropout, config.keep_tags)
        self.latents = LatentStore(host.folders.data / "latents", host, config.resolution, config.bucket_step)
        self.masks = MaskStore(self.latents, config)
        self.shape = timestep_shape(config)
        self.texts = CaptionStore(host, host.folders.data / "captions")

    def prepare(self) -> Iterator[tuple[int, int, str]]:
        """Encodes pictures and fixed captions; yields (done, total, what). Unreadable pictures are left out and named in `warnings`."""
        self.regular = self._read_regularization()
        for done, total in self.latents.prepare([*self.dataset.pictures, *self.regular], self.config.crops, self.config.flip):
            yield done, total, "Encoding pictures"
        self._leave_out(self.latents.skipped)
        self._leave_out(self.masks.prepare([*self.dataset.pictures, *self.regular]))
        self.warnings += self.masks.warnings(self.dataset.pictures)
        self.training, self.held_out = self._split(self.dataset.pictures)
        self.training += self.regular
        buckets = [self.latents.bucket(picture) for picture in self.training]
        hands = hands_for(self.training, buckets)
        self.plan = Plan(
            [buckets[hand[0]] for hand in hands], self.config.batch_size * self.processes, self.config.seed, self.config.flip,
            self.config.crops, self.config.gradient_accumulation, hands,
        )
        if self.captions.fixed:
            yield from self._encode_captions()
        else:
            self._warn_of_changing_captions()

    def _read_regularization(self) -> list[Picture]:
        """Pictures of what the model is to keep."""
        if not self.config.regularization:
            return []
        found = read_pictures(self.config.regularization, resolution=self.latents.resolution, cache=self.host.folders.data / "latents")
        self.warnings += [*found.warnings, *left_out(found.skipped)]
        return [dataclasses.replace(picture, regularization=True) for picture in found.pictures]

    def _leave_out(self, pictures: Sequence[tuple[Path, str]]) -> None:
        if pictures:
            self.dataset = self.dataset.without(pictures)
            gone = {path for path, _ in pictures}
            self.regular = [picture for picture in self.regular if picture.path not in gone]
            self.warnings += left_out(pictures)

    def _split(self, pictures: Sequence[Picture]) -> tuple[list[Picture], list[Picture]]:
        """(training pictures, held-out pictures)"""
        return split(pictures, self.config.validation_share, self.config.seed)

    def _encode_captions(self) -> Iterator[tuple[int, int, str]]:
        for done, total in self.texts.prepare(self._wanted_captions()):
            yield done, total, "Encoding captions"
        self.host.release_encoders()

    def _wanted_captions(self) -> list[str]:
        captions = [*self.captions.possible(self.dataset.pictures), *self.regular_captions.possible(self.regular)]
        return [*captions, *map(self._validation_caption, self.held_out)]

    def _warn_of_changing_captions(self) -> None:
        """What captions that are drawn anew cost is measured, not guessed."""
        texts = [Batches._caption(self, picture, 0, 0) for picture in self.training]
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
        pictures = [self.training[sample.picture] for sample in samples]
        latents, noises, captions, sizes = [], [], [], []
        for sample, picture in zip(samples, pictures, strict=True):
            latents.append(self._latent(picture, sample.flip, sample.crop, generator_for(seed, step, sample.number, "latent")))
            noises.append(self._noise(latents[-1].shape, generator_for(seed, step, sample.number, "noise")))
            captions.append(self._caption(picture, step, sample.number))
            sizes.append(self.latents.size(picture, sample.flip, sample.crop))
        timesteps = timesteps_for(seed, step, count, len(self.host.alphas_cumprod), self.shape)[[sample.number for sample in samples]]
        batch = self._batch(latents, noises, timesteps, self._conditioning(captions), sizes)
        batch.perturbation = self._perturbation(batch.noise, step, samples)
        if self.config.regularization:
            batch.keeping = tuple(picture.regularization for picture in pictures)
            batch.regular = torch.tensor(batch.keeping, device=self.host.device)
            batch.weights = torch.where(batch.regular, self.config.regularization_weight, 1.0)
        batch.area = self._area([(picture, sample.flip, sample.crop) for sample, picture in zip(samples, pictures, strict=True)])
        if batch.area is not None and self.config.unmasked_share:
            draws = [random_for(seed, step, sample.number, "without mask").random() for sample in samples]
            batch.area[torch.tensor(draws) < self.config.unmasked_share] = 1.0
        return batch

    def blank(self) -> Batch:
        """As many samples as a process is shown at once, of the largest size, with nothing in them. Nothing has to be prepared."""
        rows = self.config.batch_size
        largest = max(map(self.latents.bucket, self.dataset.pictures), key=lambda bucket: bucket.width * bucket.height)
        latents = [torch.zeros(LATENT_CHANNELS, largest.height // self.latents.factor, largest.width // self.latents.factor)] * rows
        size = PictureSize((largest.height, largest.width), (0, 0), (largest.height, largest.width))
        conditioning = self.host.encode_prompts([""]).rows([0] * rows)
        return self._batch(latents, latents, torch.zeros(rows, dtype=torch.int64), conditioning, [size] * rows)

    def _samples(self, step: int, micro_step: int) -> list[Sample]:
        """This process's share of a batch."""
        return self.plan.batch((step - 1) * self.config.gradient_accumulation + micro_step)[self.process :: self.processes]

    def _caption(self, picture: Picture, step: int, number: int) -> str:
        captions = self.regular_captions if picture.regularization else self.captions
        return captions.write(picture, random_for(self.config.seed, step, number, "caption"))

    def _noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return draw_noise(shape, generator, self.config.noise_offset, self.config.pyramid_noise, self.config.pyramid_levels)

    def _perturbation(self, noise: Tensor, step: int, samples: Sequence[Sample]) -> Tensor | None:
        """[b, c, h, w], None where nothing is asked for."""
        if not self.config.input_perturbation:
            return None
        draws = [torch.randn(noise.shape[1:], generator=generator_for(self.config.seed, step, sample.number, "perturbation")) for sample in samples]
        return self.config.input_perturbation * torch.stack(draws).to(noise.device)

    def _area(self, views: Sequence[tuple[Picture, bool, int]]) -> Tensor | None:
        """What each place of (picture, mirrored, crop) counts [b, 1, h, w], None where all do alike."""
        if self.config.masks == "none":
            return None
        return torch.stack([self.masks.get(*view) for view in views]).to(self.host.device)

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
            batches[-1].area = self._area([(picture, False, 0)] * VALIDATION_TIMESTEPS)
        return batches

    def preview_lines(self) -> list[PreviewLine]:
        """What previews are drawn of: the prompts asked for, else captions, of held-out pictures first."""
        shown = [picture for picture in [*self.held_out, *self.training] if not picture.regularization]
        captions = dict.fromkeys(map(self._validation_caption, shown))
        return read_lines(self.config.preview_prompts) or captions_as_lines(list(captions)[:PREVIEWS])

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
