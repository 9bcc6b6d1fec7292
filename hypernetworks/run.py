"""A training run in progress: the loop, what it says of itself, and what it keeps."""
from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .batches import Batch, Batches
from .best import Best
from .checkpoint import Row, RunFolder
from .clock import Clock
from .config import TrainingConfig, plain
from .errors import Interrupted, TrainingFailed
from .files import write_atomically
from .learner import Learner
from .networks import training_metadata
from .objective import Objective
from .plan import seed_for
from .recovery import Recovery, finite
from .sheets import sheet
from .trainees import Trainee

REPORT_EVERY = 10  # steps between looks at the loss where a look makes the device wait


@dataclass(frozen=True)
class Progress:
    """What happened. Losses are means since the last event of kind "step"; `rate` is the first network's."""

    kind: str  # "preparing", "warning", "step", "validation", "preview", "checkpoint", "finished", "stopped" or "cancelled"
    step: int = 0
    steps: int = 0
    message: str = ""
    loss: float | None = None
    validation_loss: float | None = None
    rate: float | None = None
    seconds_left: float | None = None
    pictures: tuple[Path, ...] = ()
    path: Path | None = None


class Orders:
    """What a run is told while it is going on, from any thread: to `stop`, with the network saved, or to `cancel`, with no file written."""

    def __init__(self) -> None:
        self.stop, self.cancel = threading.Event(), threading.Event()

    @property
    def ending(self) -> bool:
        """Whether it was told either."""
        return self.stop.is_set() or self.cancel.is_set()


class Run:
    """A run in progress. `begin` comes first, then `events`."""

    def __init__(
        self, orders: Orders, trainee: Trainee, accelerator: Any, batches: Batches, folder: RunFolder, objective: Objective
    ) -> None:
        self.orders, self.trainee, self.host, self.accelerator = orders, trainee, trainee.host, accelerator
        self.batches, self.folder, self.objective = batches, folder, objective
        self.config = config = trainee.config
        self.steps = config.max_steps
        if config.max_epochs:
            self.steps = min(self.steps, math.ceil(config.max_epochs * batches.batches_per_epoch / config.gradient_accumulation))
        self.step = self.saved_step = 0  # the step at hand, and that of the state on the disk
        self.report_every = 1 if self.host.device.type == "cpu" else REPORT_EVERY
        samples = config.batch_size * config.gradient_accumulation * accelerator.num_processes
        self.recovery = Recovery(config.explosion_factor, config.rollbacks, samples * self.report_every)
        self.best = Best(config.early_stop, config.validation_every, config.keep_best)
        self.last_previews: tuple[Path, ...] = ()
        self.validation_loss: float | None = None
        self.exhausted = False  # every way back was taken
        self.settled = False  # validation does not get better any more
        self.warnings: list[str] = []
        self.started, self.seconds_before = time.monotonic(), 0.0

    def begin(self, resume: bool) -> None:
        """Network and optimizer, at the run's start or where it was left."""
        state = self.folder.load_state() if resume else None
        self.trainee.begin(self.trainee.target if resume and state is None and self.trainee.target.exists() else None)
        self.network = self.trainee.network
        self.learner = Learner(self.trainee, self.config, self.accelerator)
        if state is not None:
            self.learner.restore(state)
            self.step = self.saved_step = state["step"]
            self.seconds_before = state.get("seconds", 0.0)
            if self.folder.about().get("options", {}).get("learning_rate", TrainingConfig.learning_rate) == self.config.learning_rate:
                self.recovery.rate, self.recovery.used = state.get("recovery", (1.0, 0))  # else what is asked now counts
        if (self.config.early_stop or self.config.keep_best) and not self.batches.held_out:
            self.warnings.append("No picture is held out, so there is no best validation: use more pictures, or a larger Held-out share (validation_share).")
        self.best.begin(self.step, state.get("best") if state is not None else None)
        self.folder.begin({"options": plain(self.config), "model": vars(self.host.model), "pictures": self.batches.picture_count}, self.step)

    def events(self) -> Iterator[Progress]:
        """The loop. Ends with "finished", "stopped" or "cancelled"."""
        losses: list[Tensor] = []
        self.started = time.monotonic()
        if self.step == 0 and self.learner.average is not None:
            self.learner.average.begin()  # the network may have learned something since `begin`
        self.recovery.begin(self.step, self.learner.state())
        if self._due(self.config.validation_every, at_start=True):
            yield self._validate()
            self.recovery.measured(self.validation_loss)
        if self._due(self.config.preview_every, at_start=True):
            yield self._preview()
        clock = Clock(self.steps - self.step)
        while self.step < self.steps and not (self.orders.ending or self.settled):
            self.step += 1
            rate = self.learner.set_rate(self.step, self.steps, self.recovery.rate)
            losses.append(self._train_step())
            clock.tick()
            if self.step % self.report_every == 0 or self._saving:
                loss = self._mean_loss(losses)
                losses.clear()
                if trouble := self._trouble(loss):
                    yield self._go_back(trouble)
                    if self.exhausted:
                        break
                    clock.steps_left = self.steps - self.step
                    continue
                self.folder.add_row(Row(self.step, loss, None, rate))
                yield Progress("step", self.step, self.steps, loss=loss, rate=rate, seconds_left=clock.seconds_left())
            with clock.paused():
                if self._due(self.config.validation_every):
                    yield self._validate()
                self.settled = self._has_settled()
                self._remember()
                if self._due(self.config.preview_every):
                    yield self._preview()
                if self._due(self.config.checkpoint_every) and self.step < self.steps:
                    yield self._checkpoint()
        yield self._finish()

    @property
    def seconds(self) -> float:
        """How long the run has taken, without what goes before its first step and without pauses from which it was resumed."""
        return self.seconds_before + time.monotonic() - self.started

    @property
    def _saving(self) -> bool:
        """Whether the weights of the step at hand will be measured or saved, on every process alike."""
        often = (self.config.checkpoint_every, self.config.validation_every)
        return self.step == self.steps or any(every and self.step % every == 0 for every in often)

    def _due(self, every: int, at_start: bool = False) -> bool:
        if not every or not self.accelerator.is_main_process:
            return False
        return self.step == 0 if at_start else (self.step % every == 0 or self.step == self.steps)

    def _train_step(self) -> Tensor:
        """One update of the weights; gives the loss without waiting for the device."""
        total = torch.zeros((), device=self.host.device)
        with _seeded(seed_for(self.config.seed, self.step, 0, "dropout"), self.host.device):
            for micro_step in range(self.config.gradient_accumulation):
                with self.accelerator.accumulate(self.learner.denoiser):
                    loss = self._loss(self.batches.at(self.step, micro_step))
                    self.accelerator.backward(loss)
                    self.learner.update(self.step)
                total += loss.detach() / self.config.gradient_accumulation
        return total

    def _loss(self, batch: Batch) -> Tensor:
        noisy = self.objective.noisy(batch)
        kept = self._kept(noisy, batch) if self.objective.keeps(batch) else None
        with self.accelerator.autocast():
            predicted, penalty = self.learner.denoiser(noisy, batch)
        return self.objective.loss(predicted, batch, kept) + self.trainee.penalty * penalty

    def _kept(self, noisy: Tensor, batch: Batch) -> Tensor:
        """What the model itself predicts. It comes before the network's pass: what a pass made lives until the next one."""
        with torch.no_grad(), self.trainee.resting(), self.accelerator.autocast():
            return self.host.predict(noisy, batch.timesteps, batch.conditioning, batch.sizes)

    def _mean_loss(self, losses: list[Tensor]) -> float:
        """Of all processes, so that they decide alike."""
        loss = torch.stack(losses).mean()
        return float(self.accelerator.reduce(loss, "mean") if self.accelerator.num_processes > 1 else loss)

    def _trouble(self, loss: float) -> str:
        """What is wrong with the step at hand, empty where nothing is. Weights are looked at before they are saved or remembered."""
        if trouble := self.recovery.trouble(self.step, loss):
            return trouble
        self.recovery.confirm(self.step)
        if (self._saving or self.recovery.snapshot_due(self.step)) and not finite(self.network):
            return "The weights are not numbers"
        return ""

    def _remember(self) -> None:
        """Keeps the run's state in memory now and then, and whenever it was validated."""
        every = self.config.validation_every
        validated = bool(every) and self.step % every == 0
        if self.recovery.ways and (validated or self.recovery.snapshot_due(self.step)):
            self.recovery.keep(self.step, self.learner.state, self.validation_loss if validated else None)

    def _go_back(self, trouble: str) -> Progress:
        """To the last good weights, at half the rate; to the best ones, and to the end, where that was done as often as is allowed.

        Raises `TrainingFailed` where the run has come to nothing better than what it began with.
        """
        failed, snapshot = self.step, self.recovery.back()
        if snapshot is None:
            if self.recovery.fruitless:
                too = f", at {self.recovery.rate:g} of the rate too" if self.recovery.used else ""
                raise TrainingFailed(
                    f"{trouble} at step {failed}{too}. What was saved before is untouched; lower the learning rate and continue."
                )
            snapshot, self.exhausted = self.recovery.best, True
        self.learner.restore(snapshot.state)
        self.step, self.validation_loss = snapshot.step, snapshot.validation_loss
        self.folder.forget_after(self.step)
        if self.saved_step > self.step:  # or a resumed run would go on from weights that were given up
            self._save_state()
        if self.exhausted:
            then = f"the rate was halved {self.recovery.used} times already, so the run ends with the best weights, those of step {self.step}."
        else:
            then = f"back to step {self.step}, and on at {self.recovery.rate:g} of the rate that was asked for."
        return Progress("warning", failed, self.steps, message=f"{trouble} at step {failed}: {then}")

    def _validate(self) -> Progress:
        """Mean weighted loss on pictures that are never trained on, at fixed timesteps and noise."""
        with self.learner.shown(), torch.no_grad():
            losses = [self._loss(batch) for batch in self.batches.validation()]
            if not losses:
                return Progress("validation", self.step, self.steps)
            self.validation_loss = float(torch.stack(losses).mean())
            self.best.measured(self.step, self.validation_loss, self.network.state_dict)
        if self.learner.average is not None:
            self.best.beside(self.step, self.network.state_dict)
        self.folder.add_row(Row(self.step, None, self.validation_loss, None))
        return Progress("validation", self.step, self.steps, validation_loss=self.validation_loss)

    def _has_settled(self) -> bool:
        """Whether the run is to end since validation has not got better; only the main process measures, and all decide alike."""
        if not self.best.patience or self.step % self.config.validation_every:
            return False
        settled = self.best.has_waited(self.step)
        if self.accelerator.num_processes == 1:
            return settled
        told = torch.tensor(float(settled and self.accelerator.is_main_process), device=self.host.device)
        return bool(self.accelerator.reduce(told, "sum"))

    def _preview(self) -> Progress:
        """Pictures of the preview prompts, each time from the same noise."""
        with self.learner.shown():
            self.last_previews = tuple(self._draw())
        return Progress("preview", self.step, self.steps, message="\n".join(self.prompts), pictures=self.last_previews)

    def _draw(self) -> list[Path]:
        side = self.config.resolution or self.host.model.resolution
        paths = []
        for number, line in enumerate(self.batches.preview_lines()):
            request = line.request(self.config, side)
            try:
                with torch.no_grad(), self.trainee.drawing(self.batches, number):
                    picture = self.host.generate(request, lambda step, steps: self.trainee.before_step())[0]
            except Interrupted:  # the host says so in `report`, too; the run is stopped there
                break
            paths.append(self.folder.preview_path(self.step, number + 1))
            picture.save(paths[-1])
        return paths

    @property
    def prompts(self) -> list[str]:
        """Of the previews, in their order."""
        return [line.prompt for line in self.batches.preview_lines()]

    def _save_sheet(self) -> None:
        """All previews as one picture."""
        if self.config.sample_sheet and (made := sheet(self.folder.previews_by_place(), self.prompts)) is not None:
            write_atomically(self.folder.sheet_path, lambda path: made.save(path, "PNG"))

    def _checkpoint(self) -> Progress:
        """The network as a file, and all that is needed to go on from here."""
        self._refuse_damaged()
        self._describe()
        with self.learner.shown():
            (path,) = self.trainee.save(self.folder.checkpoint_path(self.step))
        self._save_state()
        if self.config.checkpoints_kept:
            self.folder.keep_checkpoints(self.config.checkpoints_kept)
        return Progress("checkpoint", self.step, self.steps, path=path)

    def _save_state(self) -> None:
        recovery = (self.recovery.rate, self.recovery.used)
        about = {"step": self.step, "recovery": recovery, "best": self.best.state(), "seconds": self.seconds}
        self.folder.save_state(self.learner.state() | about)
        self.saved_step = self.step

    def _finish(self) -> Progress:
        if self.orders.cancel.is_set():
            self.network.eval().requires_grad_(False)
            return Progress("cancelled", self.step, self.steps, message="Cancelled; no file was written.")
        self._checkpoint()
        kept = self.best.weights is not None and self.best.step != self.step
        if kept:
            self._describe_best()
        written = self._save_network(self.best.weights if kept else None, self.best.raw if kept else None)
        self._save_sheet()
        kind = "finished" if self.settled or self.step >= self.steps else "stopped"
        self.folder.note_result({"ending": kind, "step": self.step, "seconds": round(self.seconds, 3)})
        return Progress(
            kind, self.step, self.steps, message=self._ending(written, kept), validation_loss=self.best.loss if kept else self.validation_loss,
            pictures=self.last_previews, path=written[0],
        )

    def _ending(self, written: list[Path], kept: bool) -> str:
        early = f"The validation loss has not fallen since step {self.best.step}, so the run ends early. " if self.settled else ""
        which = f", with the weights of step {self.best.step}, whose validation loss was lowest" if kept else ""
        return f"{early}Saved {' and '.join(path.name for path in written)}{which}."

    def _save_network(self, weights: Mapping[str, Any] | None, raw_weights: Mapping[str, Any] | None) -> list[Path]:
        """Writes the network, the average where there is one and then the weights themselves beside it. It stays as it was written.

        Weights that are given take the place of those of the last step.
        """
        raw = []
        if self.learner.average is not None:
            if raw_weights is not None:
                self.network.load_state_dict(raw_weights)
            target = raw_path(self.trainee.target)
            self.network.name = target.stem
            raw = self.trainee.save(target)
            self.network.name = self.config.name
        self.learner.settle()
        if weights is not None:
            self.network.load_state_dict(weights)
        return [*self.trainee.save(self.trainee.target), *raw]

    def _refuse_damaged(self) -> None:
        if not finite(self.network):
            raise TrainingFailed(f"The weights are not numbers at step {self.step}; nothing was saved over the last good checkpoint.")

    def _describe(self) -> None:
        self.network.name, self.network.step = self.config.name, self.step
        preview = self.last_previews[0] if self.last_previews else None
        self.network.metadata.update(training_metadata(self.config, self.host.model, self.batches.picture_count, preview))

    def _describe_best(self) -> None:
        """The file is of an earlier step; a run that goes on does so from the last one."""
        self.network.step = self.best.step
        self.network.metadata.update({"last_step": str(self.step), "validation_loss": f"{self.best.loss:.6g}"})


def raw_path(target: Path) -> Path:
    """Where the weights themselves stand when `target` holds their average."""
    return target.with_name(f"{target.stem}-raw{target.suffix}")


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global random state starts from `seed` within (dropout draws from it), and is afterwards what it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


