"""What a run does when its loss is not a number or explodes: back to the last weights that were good, and on at half the rate."""
from __future__ import annotations

import math
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

SNAPSHOT_EVERY = 50  # steps
WINDOW = 32  # samples that the loss is a mean of when it is judged
CALM = 2.0  # times its lowest: a good run's mean stays below that (1.5 in 800 steps of four), and above it no weights count as good


@dataclass(frozen=True)
class Snapshot:
    """A run's state at a step, in a place of its own."""

    step: int
    load: Callable[[], dict[str, Any]]
    validation_loss: float | None

    @property
    def state(self) -> dict[str, Any]:
        """On the CPU."""
        return self.load()


class Recovery:
    """Watches the losses of a run and remembers where it can go back to.

    A snapshot counts as good once the loss of a later step is calm, since a step's loss says how the weights before it were.
    """

    rate = 1.0  # what is left of the rate that was asked for
    used = 0  # ways back that were taken

    def __init__(self, factor: float, ways: int, samples: int, folder: Path | None = None) -> None:
        """`factor` times the lowest mean of `WINDOW` samples' losses is an explosion (0: none is), `ways` how often to go back, `samples`
        in each loss that is reported; `folder` is where snapshots become nameless files, None: they stay in memory."""
        self.factor, self.ways, self.folder = factor, ways, folder
        self._losses: deque[tuple[int, float]] = deque(maxlen=math.ceil(WINDOW / samples))
        self._lowest, self._means, self._calm = math.inf, 0, True
        self._pending: Snapshot | None = None

    def begin(self, step: int, state: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> None:
        """The run starts, or goes on, here; `before` is the `memory` of the part that it goes on from. Nothing is copied where there is no way back."""
        good = (before or {}).get("good") or {"step": step, "state": state, "validation_loss": None}
        self.good = self.best = Snapshot(good["step"], self._put(good["state"]) if self.ways else dict, good["validation_loss"])
        if before is not None:
            self._losses.extend(map(tuple, before["losses"]))
            self._lowest, self._means, self._calm = before["lowest"], before["means"], before["calm"]

    @property
    def memory(self) -> dict[str, Any]:
        """What `begin` takes: how the losses were, and while they climb the last good state too, since the one at hand is none."""
        good = None
        if self.ways and not self._calm:
            good = {"step": self.good.step, "state": self.good.state, "validation_loss": self.good.validation_loss}
        return {"losses": list(self._losses), "lowest": self._lowest, "means": self._means, "calm": self._calm, "good": good}

    @property
    def fruitless(self) -> bool:
        """Whether nothing better is known than an untrained network. What a run goes on from is better: it was saved as good."""
        return self.best.step == 0 or not self.ways

    def measured(self, validation_loss: float | None) -> None:
        """How good the run was when it began: what is best has to be better."""
        self.good = self.best = replace(self.good, validation_loss=validation_loss)

    def trouble(self, step: int, loss: float) -> str:
        """What is wrong with the loss of a step, in words that its number can follow; empty where nothing is, and it is remembered."""
        if not math.isfinite(loss):
            return "The loss is not a number"
        self._losses.append((step, loss))
        if len(self._losses) < self._losses.maxlen:
            return ""  # too few to judge
        mean = sum(value for _, value in self._losses) / len(self._losses)
        if self.factor and self._means >= self._losses.maxlen and mean > self.factor * self._lowest:
            return f"The loss is {mean / max(self._lowest, 1e-12):.1f} times what it was"
        self._lowest, self._means = min(self._lowest, mean), self._means + 1
        self._calm = not self.factor or mean <= min(CALM, self.factor) * self._lowest
        return ""

    def snapshot_due(self, step: int) -> bool:
        """Whether it is time for `keep`."""
        return self.ways > 0 and step - (self._pending or self.good).step >= SNAPSHOT_EVERY

    def confirm(self, step: int) -> None:
        """The loss of a step was no trouble; if it was calm, the weights before it were good."""
        if self._pending is not None and step > self._pending.step and self._calm:
            self.good, self._pending = self._pending, None
            if _better(self.good, self.best):
                self.best = self.good

    def keep(self, step: int, make: Callable[[], Mapping[str, Any]], validation_loss: float | None) -> None:
        """Remembers the state after a step."""
        self._pending = Snapshot(step, self._put(make()), validation_loss)

    def back(self) -> Snapshot | None:
        """Where to go on from, at half the rate; None where every way back was taken."""
        if self.used >= self.ways:
            return None
        self.used, self.rate, self._pending = self.used + 1, self.rate / 2, None
        while self._losses and self._losses[-1][0] > self.good.step:
            self._losses.pop()
        self._calm = True
        return self.good


    def _put(self, state: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
        """Keeps a state; gives what loads it. Where the disk does not take it, it stays in memory after all."""
        if self.folder is not None:
            try:
                file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115  it is gone with the last that holds it, however the process ends
                torch.save(dict(state), file)
                return lambda: _loaded(file)
            except (OSError, RuntimeError):  # the latter is torch's where a file takes no more
                pass
        whole = copied(state)
        return lambda: whole


def _loaded(file: IO[bytes]) -> dict[str, Any]:
    file.seek(0)
    return torch.serialization.load(file, map_location="cpu", weights_only=True)  # A1111 replaces torch.load (modules/safe.py:195)


def copied(state: Any) -> Any:
    """The same nested values with tensors of their own, in the machine's memory."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: copied(value) for key, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(copied(value) for value in state)
    return state


def finite(network: nn.Module) -> bool:
    """Whether all weights are numbers."""
    return all(bool(torch.isfinite(parameter).all()) for parameter in network.parameters())


def _better(later: Snapshot, best: Snapshot) -> bool:
    """By the validation loss where one was measured, else the later one is."""
    if best.validation_loss is None:
        return True
    return later.validation_loss is not None and later.validation_loss < best.validation_loss
