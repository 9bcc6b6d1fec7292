"""A training run on the terminal: bars with the time left, and one line for everything worth a line."""
from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from .trainer import HypernetworkTrainer, Progress


def show(trainer: HypernetworkTrainer, events: Iterable[Progress], silent: bool = False) -> Progress | None:
    """Prints a run's events as they come, unless it is to be `silent`, and gives the last one. Ctrl+C once stops and saves, twice interrupts."""
    bars: dict[str, tqdm] = {}
    last = None
    with _stop_on_interrupt(trainer, silent):
        try:
            for last in events:
                if not silent:
                    _show(last, bars)
        finally:
            for bar in bars.values():
                bar.close()
    return last


def _show(event: Progress, bars: dict[str, tqdm]) -> None:
    if event.kind in ("preparing", "step") and event.steps:
        label = event.message if event.kind == "preparing" else "Training"
        if label not in bars:
            for bar in bars.values():
                bar.close()
            bars.clear()
            bars[label] = tqdm(total=event.steps, desc=label, initial=max(0, event.step - 1), dynamic_ncols=True, mininterval=0.5)
        bar = bars[label]
        bar.update(event.step - bar.n)
        if event.loss is not None:
            bar.set_postfix_str(f"loss {event.loss:.4f} rate {event.rate:.2g}", refresh=False)
        return
    words = {
        "preparing": event.message,
        "warning": f"Note: {event.message}",
        "validation": f"step {event.step}: validation loss {event.validation_loss:.4f}" if event.validation_loss is not None else "",
        "preview": f"step {event.step}: preview {', '.join(map(str, event.pictures))}",
        "checkpoint": f"step {event.step}: checkpoint {event.path}",
        "finished": f"Finished at step {event.step}: {event.path}\n{event.message}",
        "stopped": f"Stopped at step {event.step}: {event.path}",
        "cancelled": event.message,
    }[event.kind]
    if words:
        tqdm.write(words, file=sys.stderr if event.kind == "warning" else sys.stdout)


@contextmanager
def _stop_on_interrupt(trainer: HypernetworkTrainer, silent: bool) -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        if not silent:
            tqdm.write("Stopping after this step and saving; press Ctrl+C again to end at once.", file=sys.stderr)
        trainer.stop()
        signal.signal(signal.SIGINT, before)

    try:
        before = signal.signal(signal.SIGINT, stop)
    except ValueError:  # only the main thread may set handlers
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
