"""The best validation of a run: whether the run has stopped improving, and the weights that were measured then."""
from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from .config import TrainingConfig, options
from .host import ModelFacts
from .recovery import copied

JUDGES = (  # options beside those of the group Loss
    "seed", "validation_share", "resolution", "bucket_step", "caption_template", "shared_caption", "masks", "invert_masks", "unmasked_weight",
    "masked_prior_weight", "normalize_masks", "residual_penalty", "weight_penalty",
)  # fmt: skip


def yardstick(config: TrainingConfig, model: ModelFacts, pictures: str) -> str:
    """32 digits that two runs have in common only if their losses can be compared: of the options that decide over them, the model, and the
    digest of the `pictures`."""
    names = [name for name, about in options(TrainingConfig).items() if about.group == "Loss" or name in JUDGES]
    facts = [(name, getattr(config, name)) for name in names], sorted((vars(model) | {"name": ""}).items()), pictures  # a file may be renamed
    return hashlib.sha256(repr(facts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Best:
    """The lowest validation loss after the first step. The untrained network's is not counted: it would be kept where training is hard."""

    def __init__(self, patience: int, every: int, keep: bool) -> None:
        """`patience` is after how many validations without improvement to end (0: never), `every` the steps from one to the next, `keep`
        whether weights are remembered."""
        self.patience, self.every, self.keep = patience, every, keep
        self.step, self.loss = 0, math.inf
        self.weights: Mapping[str, Any] | None = None  # the network as it was measured, in memory of its own
        self.raw: Mapping[str, Any] | None = None  # where that was an average: what it was the average of

    def begin(self, step: int, state: Mapping[str, Any] | None) -> None:
        """The run starts, or goes on, at a step; `state` is what an earlier part of it knew. Where weights are remembered now and were not then, a
        loss without its weights is of no use."""
        self.step = step
        if state is None or (self.keep and state["weights"] is None):
            return
        self.step, self.loss = state["step"], state["loss"]
        if self.keep:
            self.weights, self.raw = state["weights"], state["raw"]

    def state(self) -> dict[str, Any]:
        """What `begin` takes."""
        return {"step": self.step, "loss": self.loss, "weights": self.weights, "raw": self.raw}

    def measured(self, step: int, loss: float, weights: Callable[[], Mapping[str, Any]]) -> None:
        """A validation loss, and what gives the network's weights as they were measured."""
        if step == 0 or not loss < self.loss:
            return
        self.step, self.loss = step, loss
        if self.keep:
            self.weights, self.raw = copied(weights()), None

    def beside(self, step: int, weights: Callable[[], Mapping[str, Any]]) -> None:
        """What gives the weights themselves, where an average was measured at this step."""
        if self.keep and step == self.step and self.weights is not None:
            self.raw = copied(weights())

    def has_waited(self, step: int) -> bool:
        """Whether the validation of this step is the last that may pass without improvement."""
        return self.patience > 0 and self.loss < math.inf and step - self.step >= self.patience * self.every
