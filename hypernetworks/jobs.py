"""The training run that a page can start, watch, leave and find again, and those that wait behind it. It lives in its own thread, not in the page."""
from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import TrainingConfig
from .errors import HostBusy, HypernetworkError, NotThere
from .host import Host
from .waiting import Queue, Waiting

if TYPE_CHECKING:
    from .sweep import Sweep
    from .trainer import Progress

MakeTrainer = Callable[..., Any]
"""Called with `config=`; gives something with `run(host=, resume=, overwrite=)`, `stop()` and `cancel()`."""

PATIENCE = 1.0  # seconds between looks whether the model is free
ENDINGS = ("finished", "stopped", "cancelled")
log = logging.getLogger(__name__)


class Curve:
    """A line of (step, value) that stays short: when it is full, neighbours become their mean and later points mean twice as many."""

    def __init__(self, limit: int = 1024) -> None:
        self.limit, self.stride = limit, 1
        self._points: list[tuple[float, float]] = []
        self._open: list[tuple[float, float]] = []

    def add(self, step: float, value: float) -> None:
        """Appends one value. A step that is not later than the last one means that the run has gone back: what came after it is dropped."""
        if (self._open or self._points) and step <= (self._open or self._points)[-1][0]:
            self._points, self._open = ([point for point in points if point[0] < step] for points in (self._points, self._open))
        self._open.append((step, value))
        if len(self._open) == self.stride:
            self._points.append(_mean(self._open))
            self._open.clear()
        if len(self._points) >= self.limit:
            self._points = [_mean(self._points[index : index + 2]) for index in range(0, len(self._points), 2)]
            self.stride *= 2

    def points(self) -> list[tuple[float, float]]:
        """At most `limit` + 1 points, oldest first; the last one may stand for fewer steps than the others."""
        return [*self._points, _mean(self._open)] if self._open else list(self._points)


def _mean(points: list[tuple[float, float]]) -> tuple[float, float]:
    return sum(step for step, _ in points) / len(points), sum(value for _, value in points) / len(points)


@dataclass(frozen=True)
class Preview:
    """One picture drawn during training."""

    step: int
    path: Path
    prompt: str


class Job:
    """One run, from its start to long after its end. Every attribute may be read from any thread; `lock` guards the lists."""

    def __init__(self, number: int, trainer: Any, config: TrainingConfig) -> None:
        self.number = number  # counts the runs of this process, so that a page notices another one
        self.config = config
        self.lock = threading.Lock()
        self.events: list[Progress] = []  # all but "preparing" and "step": those are in `last` and the curves
        self.last: Progress | None = None
        self.position: Progress | None = None  # the last one that says how far the run is
        self.last_step: Progress | None = None  # the last one of kind "step": loss, rate and time left
        self.foreseen = ""  # what was said of its memory before the first step
        self.losses, self.validation_losses = Curve(), Curve()
        self.previews: list[Preview] = []
        self.error: str | None = None
        self.ending: str | None = None  # "stop" or "cancel" once asked for
        self._trainer = trainer
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    @property
    def running(self) -> bool:
        """Whether its thread is at work, be it for the saving at the end."""
        return self._thread is not None and not self._over.is_set()

    @property
    def state(self) -> str:
        """"running", "failed", or how the run ended: "finished", "stopped" or "cancelled"."""
        if self.running:
            return "running"
        return "failed" if self.error or self.last is None else self.last.kind

    @property
    def path(self) -> Path | None:
        """The network's file once the run has ended with one."""
        last = self.last
        return last.path if last is not None and last.kind in ENDINGS else None

    @property
    def warnings(self) -> list[str]:
        """Sentences for the user, in order."""
        with self.lock:
            return [event.message for event in self.events if event.kind == "warning"]

    def stop(self) -> None:
        """Ends the run after the step at hand; the file is saved."""
        self.ending = self.ending or "stop"
        self._trainer.stop()

    def cancel(self) -> None:
        """Ends the run after the step at hand; no file is written."""
        self.ending = "cancel"
        self._trainer.cancel()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for the end, at most `timeout` seconds. True when it came."""
        if self._thread is not None:
            self._thread.join(timeout)
        return not self.running

    def _start(self, events: Callable[[], Iterator[Progress]], host: Host, patient: bool, then: Callable[[], None]) -> None:
        def work() -> None:
            self._work(events, host, patient)
            self._over.set()
            then()

        self._thread = threading.Thread(target=work, name=f"training {self.config.name}", daemon=True)
        self._thread.start()

    def _work(self, events: Callable[[], Iterator[Progress]], host: Host, patient: bool) -> None:
        try:
            with ExitStack() as stack:
                if not self._take_model(stack, host, patient):
                    self._note(_cancelled())
                    return
                for event in events():
                    self._note(event)
                    if host.report(f"Training {self.config.name}", event.step, event.steps):
                        self.stop()
        except HypernetworkError as error:
            self.error = str(error)
        except Exception as error:  # the thread's end: nobody above could tell the user
            log.exception("Training %r stopped", self.config.name)
            reason = f"{type(error).__name__}: {error}".rstrip(": .")
            self.error = f"Training stopped because of an error inside the program ({reason}); the log has the details."

    def _take_model(self, stack: ExitStack, host: Host, patient: bool) -> bool:
        """Holds the model until the stack ends. A patient run waits while another job has it; False where it is told to end meanwhile."""
        while True:
            try:
                stack.enter_context(host.exclusive())
                return True
            except HostBusy:
                if not patient:
                    raise
                if self.ending:
                    return False
            time.sleep(PATIENCE)

    def _note(self, event: Progress) -> None:
        with self.lock:
            self.last = event
            if event.steps:
                self.position = event
            if event.kind == "preparing" and not event.steps:
                self.foreseen = event.message
            if event.kind == "step":
                self.last_step = event
                if event.loss is not None:
                    self.losses.add(event.step, event.loss)
            if event.kind == "validation" and event.validation_loss is not None:
                self.validation_losses.add(event.step, event.validation_loss)
            if event.kind == "preview":
                prompts = event.message.split("\n")
                prompts += [""] * (len(event.pictures) - len(prompts))
                self.previews += [Preview(event.step, path, prompt) for path, prompt in zip(event.pictures, prompts, strict=False)]
            if event.kind not in ("preparing", "step"):
                self.events.append(event)


def _cancelled() -> Progress:
    """What a run says that was told to end before its turn."""
    from .run import Progress  # with PyTorch, which a page that never trains never loads

    return Progress("cancelled", message="Cancelled before the first step.")


class Jobs:
    """Starts runs on a host, one at a time, and remembers the last one. When one ends, in whatever way, the next of the queue begins."""

    def __init__(self, host: Host, make_trainer: MakeTrainer | None = None) -> None:
        self.host = host
        self.current: Job | None = None
        self.queue = Queue(lambda: host.folders)
        self._make_trainer = make_trainer
        self._lock = threading.Lock()
        self._count = 0

    def start(self, config: TrainingConfig, resume: bool = False, overwrite: bool = False, trainer: Any = None) -> Job:
        """Starts a run in the background, of `trainer` where one is given. Raises `HostBusy` while another one is running."""
        with self._lock:
            if self.current is not None and self.current.running:
                raise HostBusy(f"A training run is going on already ({self.current.config.name}); stop it first or wait for its end.")
            return self._launch(trainer or self._new_trainer(config), config, resume, overwrite)

    def check_idle(self) -> None:
        """Raises `HostBusy` while a run has the model, or waits for it: who needs the model otherwise would wait for the run's end without a word."""
        job = self.current
        if job is not None and job.running:
            raise HostBusy(f"The model is busy with a training run ({job.config.name}); stop it first or wait for its end.")

    def add(self, config: TrainingConfig, resume: bool = False, overwrite: bool = False, sweep: str = "") -> Waiting:
        """Puts a run at the end of the queue; it begins at once where it is the first, nothing is running and the queue is not held.

        Raises what `Queue.add` raises.
        """
        one = self.queue.add(config, resume, overwrite, sweep)
        self.go_on()
        return one

    def add_sweep(self, sweep: Sweep, runs: Sequence[TrainingConfig], overwrite: bool = False) -> None:
        """Puts the runs of a sweep at the end of the queue, all of them or none. Raises what `Queue.add` raises, and `TrainingFailed` where it cannot be noted."""
        from .sweep import keep

        added = []
        try:
            for config in runs:
                added.append(self.queue.add(config, overwrite=overwrite, sweep=sweep.name))
            keep(sweep, self.host.folders)
        except HypernetworkError:
            for one in added:
                with suppress(NotThere):  # it has begun meanwhile, or was taken out
                    self.queue.remove(one.number)
            raise
        self.go_on()

    def go_on(self) -> None:
        """Begins the next run of the queue, unless one is running or the queue is held."""
        with self._lock:
            while (self.current is None or not self.current.running) and (one := self.queue.take()) is not None:
                try:
                    self._launch(self._new_trainer(one.config), one.config, one.resume, one.overwrite, one)
                except HypernetworkError as error:
                    self.queue.finish(one, "failed", str(error))

    def _launch(self, trainer: Any, config: TrainingConfig, resume: bool, overwrite: bool, one: Waiting | None = None) -> Job:
        def then() -> None:
            if one is not None:
                self.queue.finish(one, job.state, job.error or (job.last.message if job.last else ""))
                if one.sweep:
                    self._write_table(one.sweep)
            self.go_on()

        self._count += 1
        self.current = job = Job(self._count, trainer, config)
        job._start(lambda: trainer.run(host=self.host, resume=resume, overwrite=overwrite), self.host, one is not None, then)
        return job

    def _write_table(self, sweep: str) -> None:
        from .sweep import write_table

        try:
            write_table(self.host.folders, sweep)
        except HypernetworkError as error:
            log.warning("The table of the sweep %r was not written: %s", sweep, error)

    def _new_trainer(self, config: TrainingConfig) -> Any:
        if self._make_trainer is None:
            from .trainer import HypernetworkTrainer  # torch's optimizers are heavy; a page that never trains never loads them

            self._make_trainer = HypernetworkTrainer
        return self._make_trainer(config=config)
