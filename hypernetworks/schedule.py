"""Schedules: the learning rate over training steps, the strength over sampling steps."""
from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import ConfigError

AUTO = "auto"


def is_auto(learning_rate: str) -> bool:
    """Whether the text asks for (multiples of) the automatic rate."""
    return learning_rate.strip().lower().startswith(AUTO)


@dataclass(frozen=True)
class LearningRate:
    """A learning rate over training steps, with a linear warm-up from zero.

    `stages` are (rate, last step that it holds for, or infinity). Several stages make a staircase and `curve` does not apply.
    """

    stages: tuple[tuple[float, float], ...]
    curve: str = "constant"  # "constant", "linear" or "cosine", down to `floor` of the rate at the last step
    warmup_steps: int = 0
    floor: float = 0.01

    @classmethod
    def parse(cls, text: str, curve: str = "constant", warmup_steps: int = 0) -> LearningRate:
        """Reads one rate, or A1111's `5e-3:100, 1e-3:1000, 1e-5` (modules/textual_inversion/learn_schedule.py).

        After "auto" the numbers, if there are any, are multiples of the automatic rate: `auto*0.5`, `auto*1:100, 0.1`. A stage without a step, or with step -1, holds to the end. Raises `ConfigError` naming the part that cannot be read.
        """
        stages: list[tuple[float, float]] = []
        if is_auto(text):
            text = text.strip()[len(AUTO):].strip().removeprefix("*") or "1"
        for part in (part.strip() for part in str(text).split(",")):
            if not part:
                continue
            rate_text, _, until_text = part.partition(":")
            try:
                rate, until = float(rate_text), (int(until_text) if until_text.strip() else -1)
            except ValueError:
                raise ConfigError(f"Learning rate: {part!r} is not a rate such as 1e-4 or 1e-4:500.") from None
            if not (math.isfinite(rate) and rate >= 0) or (until <= 0 and until != -1):
                raise ConfigError(f"Learning rate: {part!r} must be a number of at least 0, until a step of at least 1.")
            if stages and until != -1 and until <= stages[-1][1]:
                raise ConfigError(f"Learning rate: the steps must grow, but {until} comes after {stages[-1][1]:g}.")
            stages.append((rate, math.inf if until == -1 else until))
            if until == -1:
                break
        if not stages:
            raise ConfigError("Learning rate: there is no rate in the text; write for example 1e-4.")
        return cls(tuple(stages), curve, warmup_steps)

    def at(self, step: int, steps: int) -> float:
        """The rate of step number `step` (from 1) of `steps`. After the last stage its rate goes on."""
        rate = next((rate for rate, until in self.stages if step <= until), self.stages[-1][0])
        if self.warmup_steps and step <= self.warmup_steps:
            return rate * step / (self.warmup_steps + 1)
        if len(self.stages) > 1 or self.curve == "constant":
            return rate
        done = min(1.0, (step - self.warmup_steps - 1) / max(1, steps - self.warmup_steps - 1))
        left = 1 - done if self.curve == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return rate * (self.floor + (1 - self.floor) * left)


def strength_at(start: float, end: float, step: int, steps: int) -> float:
    """1.0 while sampling step `step` (from 0) of `steps` lies within the shares `start`..`end` of the way, else 0.0."""
    return 1.0 if start <= step / max(1, steps) < end or (end >= 1.0 and step / max(1, steps) >= start) else 0.0
