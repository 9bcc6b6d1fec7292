"""The best validation of a run: whether the run has stopped improving, and the weights that were measured then."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from .recovery import copied


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
        """The run starts, or goes on, at a step; `state` is what an earlier part of it knew."""
        self.step = step
        if state is not None:
            self.step, self.loss, self.weights, self.raw = (state[name] for name in ("step", "loss", "weights", "raw"))

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
