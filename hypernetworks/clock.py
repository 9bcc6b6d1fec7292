"""How long a run will still take."""
from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds left, from a running mean of the steps' durations; pauses do not count."""

    def __init__(self, steps_left: int) -> None:
        self.steps_left, self.mean, self.last = steps_left, None, time.monotonic()

    def tick(self) -> None:
        """A step is done."""
        now = time.monotonic()
        duration = now - self.last
        self.mean = duration if self.mean is None else 0.95 * self.mean + 0.05 * duration
        self.last, self.steps_left = now, self.steps_left - 1

    def seconds_left(self) -> float:
        """An estimate."""
        return (self.mean or 0.0) * max(0, self.steps_left)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens within is no part of a step."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.last += time.monotonic() - start
