"""Schedules: the learning rate over training steps, the strength over sampling steps."""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .errors import ConfigError

AUTO = "auto"
Stages = tuple[tuple[float, float], ...]
"""(number, last step that it holds for, or infinity)."""


def is_auto(learning_rate: str) -> bool:
    """Whether the text asks for (multiples of) the automatic rate."""
    return learning_rate.strip().lower().startswith(AUTO)


@dataclass(frozen=True)
class LearningRate:
    """A learning rate over training steps, with a linear warm-up from zero.

    `stages` are (rate, last step that it holds for, or infinity). Several stages make a staircase and `curve` does not apply.
    """

    stages: Stages
    curve: str = "constant"  # or "restarts", "polynomial" or one of `CURVES`: down to `floor` of the rate at the last step
    warmup_steps: int = 0
    floor: float = 0.01
    power: float = 1.0  # of "polynomial"
    cycles: int = 1  # of "restarts": how many, each `growth` times as long as the one before, from `decay` of its rate on
    growth: float = 1.0
    decay: float = 1.0

    @classmethod
    def parse(cls, text: str, curve: str = "constant", warmup_steps: int = 0, **about: float) -> LearningRate:
        """Reads one rate, or A1111's `5e-3:100, 1e-3:1000, 1e-5` (see `parse_stages`); `about` are the further fields.

        After "auto" the numbers, if there are any, are multiples of the automatic rate: `auto*0.5`, `auto*1:100, 0.1`.
        """
        if is_auto(text):
            text = text.strip()[len(AUTO):].strip().removeprefix("*") or "1"
        return cls(parse_stages(text, "Learning rate", "rate"), curve, warmup_steps, **about)

    def at(self, step: int, steps: int) -> float:
        """The rate of step number `step` (from 1) of `steps`. After the last stage its rate goes on."""
        rate = stage_at(self.stages, step)
        if self.warmup_steps and step <= self.warmup_steps:
            return rate * step / (self.warmup_steps + 1)
        if len(self.stages) > 1 or self.curve == "constant":
            return rate
        done = min(1.0, (step - self.warmup_steps - 1) / max(1, steps - self.warmup_steps - 1))
        return rate * (self.floor + (1 - self.floor) * self._left(done))

    def _left(self, done: float) -> float:
        """The share of what is above the floor, when `done` of the way lies behind."""
        if self.curve == "restarts":
            return self._left_of_cycle(done)
        return (1 - done) ** self.power if self.curve == "polynomial" else CURVES[self.curve](done)

    def _left_of_cycle(self, done: float) -> float:
        """A cosine in each cycle (SGDR, Loshchilov & Hutter 2017)."""
        lengths = [self.growth**cycle for cycle in range(self.cycles)]
        begun, place = 0, done * sum(lengths)
        while begun < self.cycles - 1 and place >= lengths[begun]:
            place -= lengths[begun]
            begun += 1
        return self.decay**begun * CURVES["cosine"](min(1.0, place / lengths[begun]))


CURVES: dict[str, Callable[[float], float]] = {  # from the share of the way that lies behind to the share of the rate that is left
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "rex": lambda done: (1 - done) / (0.5 + 0.5 * (1 - done)),  # Chen et al. 2021
}


def parse_stages(text: str, label: str, word: str = "number") -> Stages:
    """Reads one number, or A1111's `5e-3:100, 1e-3:1000, 1e-5` (modules/textual_inversion/learn_schedule.py).

    A stage without a step, or with step -1, holds to the end. Raises `ConfigError`, beginning with the label, that names the part that
    cannot be read.
    """
    stages: list[tuple[float, float]] = []
    for part in (part.strip() for part in str(text).split(",")):
        if not part:
            continue
        number_text, _, until_text = part.partition(":")
        try:
            number, until = float(number_text), (int(until_text) if until_text.strip() else -1)
        except ValueError:
            raise ConfigError(f"{label}: {part!r} is not a {word} such as 1e-4 or 1e-4:500.") from None
        if not (math.isfinite(number) and number >= 0) or (until <= 0 and until != -1):
            raise ConfigError(f"{label}: {part!r} must be a number of at least 0, until a step of at least 1.")
        if stages and until != -1 and until <= stages[-1][1]:
            raise ConfigError(f"{label}: the steps must grow, but {until} comes after {stages[-1][1]:g}.")
        stages.append((number, math.inf if until == -1 else until))
        if until == -1:
            break
    if not stages:
        raise ConfigError(f"{label}: there is no {word} in the text; write for example 1e-4.")
    return tuple(stages)


def stage_at(stages: Stages, step: int) -> float:
    """The number that holds at a step (from 1). After the last stage its number goes on."""
    return next((number for number, until in stages if step <= until), stages[-1][0])


def strength_at(start: float, end: float, step: int, steps: int) -> float:
    """1.0 while sampling step `step` (from 0) of `steps` lies within the shares `start`..`end` of the way, else 0.0. 1 is the last step."""
    last = max(1, steps) - 1
    done = step / max(1, steps)
    return 1.0 if start <= done < end or (end >= 1.0 and (done >= start or step == last)) else 0.0
