"""Weights that generators make while pictures are drawn: from what a user says they are for, once, and kept for the next time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from .conditioning import condition_of_picture, condition_of_task, condition_of_text
from .conditions import Blend, Condition
from .errors import ConfigError
from .generator import Hypernetwork
from .host import Host
from .lora import Weights
from .prompt import ActiveNetwork, ConditionSource
from .references import References

_KINDS = {"text": "text", "reference": "image", "task": "task"}  # of a source -> of a condition
_ASK = {"text": "a text", "image": "a reference picture", "task": "a task"}


@dataclass(frozen=True)
class Recipe:
    """What weights are generated for: one source, or a second one with its share."""

    first: ConditionSource
    second: ConditionSource | None = None
    share: float = 0.0


def recipe_of(active: ActiveNetwork, prompt: str) -> Recipe:
    """What `active` says, with the picture's own prompt where it says nothing."""
    itself = ConditionSource("text", prompt.strip())
    first, second = active.condition or itself, active.second or itself
    if active.blend in (0, 1):
        return Recipe(second if active.blend else first)
    return Recipe(first, second, active.blend)


class Conditions:
    """What a host's encoders make of texts, reference pictures and tasks: each once, by the model that is loaded now.

    A job keeps one, so that a model which takes over in the middle of it works with the weights that it began with.
    """

    def __init__(self, host: Host) -> None:
        self.encoder = (host.model, host.dtype)
        self._host, self._references = host, References(host.folders.references)
        self._made: dict[ConditionSource, Condition] = {}

    def of(self, hypernetwork: Hypernetwork, recipe: Recipe) -> Condition | Blend:
        """Raises `ConfigError` for a kind of condition or a task that the generator was not made for, `NotThere` for a reference
        picture that is not here."""
        first = self._of(hypernetwork, recipe.first)
        return first if recipe.second is None else first.blended(self._of(hypernetwork, recipe.second), recipe.share)

    def _of(self, hypernetwork: Hypernetwork, source: ConditionSource) -> Condition:
        kinds, kind = hypernetwork.structure.conditions, _KINDS[source.kind]
        if kind not in kinds:
            raise ConfigError(f"It was not made for {_ASK[kind]}: give it {' or '.join(_ASK[one] for one in kinds)}.")
        if source.kind == "task":
            return condition_of_task(hypernetwork, source.value)
        if source not in self._made:
            self._made[source] = (
                condition_of_text(self._host, source.value)
                if source.kind == "text"
                else condition_of_picture(self._host, self._references.open(source.value))
            )
        return self._made[source]


class GeneratedWeights:
    """The weights that generators made last, on the CPU. They are found again by generator, encoder and recipe; the strength is no
    part of them."""

    def __init__(self, most: int = 16) -> None:
        """`most`: how many sets are kept of each generator. One for SDXL at rank 4 takes some 25 MB."""
        self._most = most
        self._kept: WeakKeyDictionary[Hypernetwork, OrderedDict[tuple, Weights]] = WeakKeyDictionary()

    def get(self, hypernetwork: Hypernetwork, recipe: Recipe, conditions: Conditions) -> Weights:
        """Weights of one row, float32. Raises as `Conditions.of` does."""
        kept, key = self._kept.setdefault(hypernetwork, OrderedDict()), (conditions.encoder, recipe)
        if key not in kept:
            # Forge draws in inference mode; weights made in it could never be used outside
            with torch.inference_mode(False), torch.no_grad():
                kept[key] = hypernetwork.generate_weights(conditions.of(hypernetwork, recipe))
        kept.move_to_end(key)
        while len(kept) > self._most:
            kept.popitem(last=False)
        return kept[key]


def stack(sets: Sequence[Weights]) -> Weights:
    """Sets of one row as one with a row for each, in their order. Where ranks differ, as a blend's does, zeros fill up."""
    stacked = {}
    for name in sets[0]:
        downs, ups = zip(*(weights[name] for weights in sets), strict=True)
        rank = max(down.shape[-2] for down in downs)
        stacked[name] = (
            torch.cat([torch.nn.functional.pad(down, (0, 0, 0, rank - down.shape[-2])) for down in downs]),
            torch.cat([torch.nn.functional.pad(up, (0, rank - up.shape[-1])) for up in ups]),
        )
    return stacked
