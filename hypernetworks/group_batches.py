"""The batches of a generator's training: each sample with what its weights are to be generated for."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .batches import LATENT_CHANNELS, PREVIEWS, Batch, Batches, left_out
from .conditions import Condition
from .config import TrainingConfig
from .dataset import Dataset, Picture
from .errors import DatasetError
from .groups import References, group_names, split_groups, with_companions
from .host import Host
from .latents import LatentStore
from .plan import random_for

PAIRS = 128  # groups at most that a step of the encoder tells apart


class GroupBatches(Batches):
    """Batches of pictures in groups. A picture's condition is its caption, the number of its group, or another picture of the group: from
    itself a generator would learn to copy. One kind per batch, drawn anew each time, so that each works alone.

    A reference is cut square to the model's resolution, as it is at generation.
    """

    def __init__(
        self, host: Host, config: TrainingConfig, dataset: Dataset, kinds: Sequence[str], tasks: Sequence[str],
        processes: int = 1, process: int = 0,
    ) -> None:
        """`kinds` of conditions, and the names of the `tasks` in the order of their numbers."""
        super().__init__(host, config, dataset, processes, process)
        self.kinds, self.tasks = tuple(kinds), tuple(tasks)
        self.reference_latents = LatentStore(host.folders.data / "latents", host, bucket_step=host.model.resolution)

    def prepare(self) -> Iterator[tuple[int, int, str]]:
        """As `Batches.prepare`, and the references."""
        if "image" in self.kinds:
            for done, total in self.reference_latents.prepare(self.dataset.pictures):
                yield done, total, "Encoding references"
            if self.reference_latents.skipped:
                self.dataset = self.dataset.without(self.reference_latents.skipped)
                self.warnings += left_out(self.reference_latents.skipped)
        yield from super().prepare()
        self.training_references, self.held_out_references = References(self.training), References(self.held_out)
        if self.held_out and group_names(self.held_out) == group_names(self.training):  # a single group
            self.held_out_references = self.training_references

    def at(self, step: int, micro_step: int) -> Batch:
        """As `Batches.at`, with conditions."""
        batch = super().at(step, micro_step)
        seed, samples = self.config.seed, self._samples(step, micro_step)
        kind = random_for(seed, step, micro_step, "kind of condition").choice(self.kinds)
        condition = self._condition(kind, self.training_references, [(self.training[sample.picture], step, sample.number) for sample in samples])
        dropped = torch.tensor([self._drop(step, sample.number) < 2 * self.config.condition_dropout for sample in samples])
        return dataclasses.replace(batch, condition=condition.drop(dropped))

    def blank(self) -> Batch:
        """As `Batches.blank`, with the richest condition; a task costs what the condition that says nothing does."""
        batch = super().blank()
        rows, side = len(batch), self.host.model.resolution // self.host.model.latent_factor
        condition = {
            "image": lambda: Condition(image=torch.zeros(rows, LATENT_CHANNELS, side, side)),
            "task": lambda: Condition.none(rows),
            "text": lambda: Condition(text=batch.conditioning.context.mean(1).float()),
        }[self._richest]()
        return dataclasses.replace(batch, condition=condition.drop(torch.zeros(rows, dtype=torch.bool)))

    def validation(self) -> list[Batch]:
        """As `Batches.validation`, each with the same reference every time; of several kinds of conditions the richest."""
        batches = super().validation()
        shown = [(picture, 0, number) for number, picture in enumerate(self.held_out[: len(batches)])]
        conditions = [self._condition(self._richest, self.held_out_references, [one]) for one in shown]
        return [
            dataclasses.replace(batch, condition=condition.select([0] * len(batch.latents)))
            for batch, condition in zip(batches, conditions, strict=True)
        ]

    def pairs(self, step: int) -> tuple[Tensor, Tensor]:
        """Two different pictures of each of some groups, [b, c, h, w] each: what the encoder learns from before the first step."""
        rng = random_for(self.config.seed, step, 0, "pairs")
        groups = self.training_references.groups
        chosen = [rng.sample(groups[name], 2) for name in rng.sample(sorted(groups), min(PAIRS, len(groups)))]
        first, second = zip(*chosen, strict=True)
        return self._references(first), self._references(second)

    def preview_conditions(self) -> list[Condition]:
        """What previews are generated for, one row each: held-out pictures first, one of each group."""
        first_of_group = {picture.group: picture for picture in reversed([*self.held_out, *self.training])}
        return [self._condition_of(self._richest, [picture]) for picture in list(first_of_group.values())[::-1][:PREVIEWS]]

    @property
    def _richest(self) -> str:
        """The kind of condition that says most of a group."""
        return next(kind for kind in ("image", "task", "text") if kind in self.kinds)

    def _split(self, pictures: Sequence[Picture]) -> tuple[list[Picture], list[Picture]]:
        if self.kinds == ("task",):  # a task that was never trained has nothing to be generated from
            return super()._split(pictures)
        share, seed = self.config.validation_share, self.config.seed
        if "image" not in self.kinds:
            return split_groups(pictures, share, seed)
        training, held_out = split_groups(with_companions(pictures), share, seed)  # some may have lost theirs to a damaged file
        training = with_companions(training)  # or in a single group to what is held out
        if not training:
            raise DatasetError("No folder is left with two pictures to train on: a generator learns from one picture of a style what another one looks like.")
        return training, held_out

    def _wanted_captions(self) -> list[str]:
        conditions = map(self._validation_caption, self.dataset.pictures) if "text" in self.kinds else ()
        return [*super()._wanted_captions(), "", *conditions]

    def _caption(self, picture: Picture, step: int, number: int) -> str:
        """Of the dropped conditions every second one takes the caption along."""
        return "" if self._drop(step, number) < self.config.condition_dropout else super()._caption(picture, step, number)

    def _drop(self, step: int, number: int) -> float:
        return random_for(self.config.seed, step, number, "dropped condition").random()

    def _condition(self, kind: str, references: References, shown: Sequence[tuple[Picture, int, int]]) -> Condition:
        """One row for each (picture, step, sample), of another picture of the group where the picture itself would be copied."""
        return self._condition_of(kind, [references.of(picture, self.config.seed, *drawn) if kind == "image" else picture for picture, *drawn in shown])

    def _condition_of(self, kind: str, pictures: Sequence[Picture]) -> Condition:
        """One row per picture, each with what the picture itself says."""
        if kind == "image":
            return Condition(image=self._references(pictures))
        if kind == "task":
            return Condition(task=torch.tensor([self.tasks.index(picture.group) for picture in pictures]))
        return Condition(text=torch.cat([self._text(self._validation_caption(picture)) for picture in pictures]))

    def _references(self, pictures: Sequence[Picture]) -> Tensor:
        """[b, c, h, w]"""
        return torch.stack([self.reference_latents.get(picture)[0] for picture in pictures])

    def _text(self, caption: str) -> Tensor:
        """[1, width]: see `conditioning.condition_of_text`."""
        return self.texts.conditioning([caption]).context.mean(1).float()
