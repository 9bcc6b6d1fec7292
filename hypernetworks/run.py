"""A training run in progress: the loop, what it says of itself, and what it keeps."""
from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .attention import attached
from .batches import VALIDATION_TIMESTEPS, Batch, Batches
from .best import Best, yardstick
from .board import Board
from .checkpoint import Row, RunFolder
from .clock import Clock
from .config import TrainingConfig
from .errors import TrainingFailed
from .learner import Learner
from .manifest import digest, sha256
from .memory import Room, without_inputs_of_convolutions
from .objective import Objective
from .plan import seed_for, seeded
from .previews import Previews
from .processes import make_alike, mean_over_all, told_by_main
from .recovery import Recovery, finite
from .saving import Saving, clear_leftovers
from .trainees import Trainee

REPORT_EVERY = 10  # steps between looks at the loss where a look makes the device wait


@dataclass(frozen=True)
class Progress:
    """What happened. Losses are means since the last event of kind "step"; `rate` is the first network's."""

    kind: str  # "preparing" (without steps: a word on what is to come), "warning", "step", "validation", "preview", "checkpoint", "finished", "stopped" or "cancelled"
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
        self.last_step: int | None = None  # after which it is to stop

    @property
    def ending(self) -> bool:
        """Whether it was told either."""
        return self.stop.is_set() or self.cancel.is_set()


class Run:
    """A run in progress. `begin` comes first, then `events` within `at_work`."""

    def __init__(
        self, orders: Orders, trainee: Trainee, accelerator: Any, batches: Batches, folder: RunFolder, objective: Objective, date: str = ""
    ) -> None:
        """`date` is what the network's file says of when it was made, in ISO 8601; empty: when the run begins."""
        self.orders, self.trainee, self.host, self.accelerator = orders, trainee, trainee.host, accelerator
        self.batches, self.folder, self.objective = batches, folder, objective
        self.config = config = trainee.config
        self.date = date
        self.steps = config.max_steps
        if config.max_epochs:
            self.steps = min(self.steps, math.ceil(config.max_epochs * batches.batches_per_epoch / config.gradient_accumulation))
        self.step = 0  # the step at hand
        self.report_every = 1 if self.host.device.type == "cpu" else REPORT_EVERY
        samples = config.batch_size * config.gradient_accumulation * accelerator.num_processes
        self.main = accelerator.is_main_process  # it alone writes and draws
        # where the machine's memory is what trains, nothing but the step at hand takes of it; elsewhere there is plenty, and steps do not wait for the disk
        beside = folder.path if self.main and self.host.device.type == "cpu" else None
        self.recovery = Recovery(config.explosion_factor, config.rollbacks, samples * self.report_every, beside)
        self.agreed = orders if accelerator.num_processes == 1 else Orders()  # what all processes know of
        self.best = Best(config.early_stop, config.validation_every, config.keep_best)
        samples = max(config.batch_size, VALIDATION_TIMESTEPS)
        self.room = Room(self.host.device, samples, config.gradient_checkpointing, self._checkpoint_activations)
        self.room_for = (config.batch_size, config.resolution, str(self.host.device))  # elsewhere there may be more of it
        self.board = Board(folder.path / "tensorboard") if config.tensorboard and self.main else None
        self.previews = Previews(trainee, batches, folder)
        self.validation_loss: float | None = None
        self.exhausted = False  # every way back was taken
        self.settled = False  # validation does not get better any more
        self.before: Mapping[str, Any] | None = None  # what recovery knew of the part that the run goes on from
        self.warnings: list[str] = []
        self.started, self.seconds_before = time.monotonic(), 0.0

    def begin(self, resume: bool, pictures: Mapping[str, Any] | None = None) -> None:
        """Network and optimizer, at the run's start or where it was left. `pictures` is the manifest of those that it learns from."""
        if self.main:
            self.folder.put_back()  # a run that was to replace this one may have been killed
        self.accelerator.wait_for_everyone()
        given = self.trainee.network is not None
        state, there = self.folder.load_state() if resume else None, self.trainee.target.exists()
        if self.main:
            clear_leftovers(self.trainee.target)
        self.trainee.begin(self.trainee.target if resume and state is None and there else None)
        self.network = self.trainee.network
        self.learner = Learner(self.trainee, self.config, self.accelerator)
        self.saving = Saving(self.trainee, self.learner, self.folder, self.best, self.batches.picture_count, self.date)
        if self.main:
            self.saving.check_space()
        self.yardstick = yardstick(self.config, self.host.model, digest(pictures or {}))
        if state is not None:
            self._take_over(state)
        if (self.config.early_stop or self.config.keep_best) and not self.batches.held_out:
            self.warnings.append("No picture is held out, so there is no best validation: use more pictures, or a larger Held-out share (validation_share).")
        self.accelerator.wait_for_everyone()  # all have read what is about to change
        if self.main:
            if not resume and (there or self.folder.has_state):
                self.folder.set_aside()
            began_from = "a network that it was given" if given else f"the file {self.trainee.target.name}" if resume and state is None and there else ""
            self.saving.note_what_was_asked(self.step, pictures or {}, began_from, self.accelerator.num_processes)

    def _take_over(self, state: dict[str, Any]) -> None:
        """What an earlier part of the run has left. What it knew of its losses counts as long as they can be compared."""
        self._restore(state)
        self.step = self.saving.step = state["step"]
        if state.get("room") and state.get("room_for") == self.room_for:
            self.warnings.append(self.room.restore(state["room"], self.config.batch_size))
        self.seconds_before = state.get("seconds", 0.0)
        if self.folder.about().get("options", {}).get("learning_rate", TrainingConfig.learning_rate) == self.config.learning_rate:
            self.recovery.rate, self.recovery.used = state.get("recovery", (1.0, 0))  # else what is asked now counts
        comparable = state.get("yardstick", self.yardstick) == self.yardstick
        self.best.begin(self.step, state.get("best") if comparable else None)
        self.before = state.get("losses") if comparable else None
        if not comparable and (self.config.early_stop or self.config.keep_best):
            self.warnings.append("The model, the pictures, the seed or the loss are not as they were, so the best validation is looked for anew from here.")

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self.learner.restore(state)
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:  # what torch raises for what does not fit
            raise self.folder.unusable(f"it does not fit the network or the optimizer: {str(error).splitlines()[0] if str(error) else error!r}") from error

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within it the model is fit for training, and the network is at work on it."""
        with ExitStack() as self._work:
            self._work.enter_context(self.host.training(self.room.checkpointing))
            self._work.enter_context(without_inputs_of_convolutions(self.host.unet))
            self._work.enter_context(attached(self.host.unet, [self.trainee.edit]))
            yield

    def _checkpoint_activations(self) -> None:
        self._work.enter_context(self.host.training(gradient_checkpointing=True))

    def events(self) -> Iterator[Progress]:
        """What happens. Ends with "finished", "stopped" or "cancelled"."""
        if self.board is None:
            yield from self._events()
            return
        self.board.begin(self.step)
        try:
            yield from self._events()
        finally:
            self.board.close()

    def _events(self) -> Iterator[Progress]:
        """The loop."""
        losses: list[Tensor] = []
        make_alike(self.accelerator, self.network)  # what was learned beforehand may differ in the last bit
        self.started = time.monotonic()
        if self.step == 0 and self.learner.average is not None:
            self.learner.average.begin()  # the network may have learned something since `begin`
        self.recovery.begin(self.step, self.learner.state(), self.before)
        if self.config.validation_every and self.step == 0:
            yield self._validate()
            self.recovery.measured(self.validation_loss)
        if self._due(self.config.preview_every, at_start=True):
            yield from self._preview()
        clock = Clock(self.steps - self.step)
        while self.step < self.steps and self.step != self.orders.last_step and not (self.agreed.ending or self.settled):
            self.step += 1
            rate = self.learner.set_rate(self.step, self.steps, self.recovery.rate)
            losses.append(self._train_step())
            clock.tick()
            yield from self._told_of_room()
            if self.step % self.report_every == 0 or self._saving:
                loss = self._look(losses)
                losses.clear()
                if trouble := self._trouble(loss):
                    yield self._go_back(trouble)
                    if self.exhausted:
                        break
                    clock.steps_left = self.steps - self.step
                    continue
                self._note(Row(self.step, loss, None, rate))
                yield Progress("step", self.step, self.steps, loss=loss, rate=rate, seconds_left=clock.seconds_left())
            with clock.paused():
                if self._reached(self.config.validation_every):
                    yield self._validate()
                self.settled = self.step < self.steps and self._reached(self.config.validation_every) and self.best.has_waited(self.step)
                self._remember()
                if self._due(self.config.preview_every):
                    yield from self._preview()
                if self._due(self.config.checkpoint_every) and self.step < self.steps:
                    yield self._checkpoint()  # last: what comes after it would be missing from a run that is killed then
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

    def _reached(self, every: int) -> bool:
        return bool(every) and (self.step % every == 0 or self.step == self.steps)

    def _due(self, every: int, at_start: bool = False) -> bool:
        """Whether it is time, and this process's turn, for what one of them does for all."""
        return self.main and (bool(every) and self.step == 0 if at_start else self._reached(every))

    def _note(self, row: Row) -> None:
        if self.main:
            self.folder.add_row(row)
        if self.board is not None:
            self.board.row(row)

    def _train_step(self) -> Tensor:
        """One update of the weights; gives the loss without waiting for the device."""
        loss = self.room.fit(self._gather_gradients, self.config.batch_size, f"at step {self.step}")
        self.learner.update(self.step)
        return loss

    def _gather_gradients(self) -> Tensor:
        """Those of the step's batches; gives the loss."""
        self.learner.forget_gradients()
        total, count = torch.zeros((), device=self.host.device), self.config.gradient_accumulation
        with seeded(seed_for(self.config.seed, self.step, self.accelerator.process_index, "dropout"), self.host.device):
            for micro_step in range(count):
                batch = self.batches.at(self.step, micro_step)
                for part in self.room.parts(batch):
                    loss = self._loss(part) * (len(part) / len(batch)) / count
                    self.accelerator.backward(loss)
                    total += loss.detach()
        return total

    def _loss(self, batch: Batch) -> Tensor:
        noisy = self.objective.noisy(batch)
        kept = self._kept(noisy, batch) if self.objective.keeps(batch) else None
        with self.accelerator.autocast():
            predicted, penalty = self.learner.denoiser(noisy, batch)
        return self.objective.loss(predicted, batch, kept) + self.trainee.penalty * penalty

    def _whole_loss(self, batch: Batch) -> Tensor:
        """That of a batch which may have to go through the model in parts."""
        return torch.stack([self._loss(part) * (len(part) / len(batch)) for part in self.room.parts(batch)]).sum()

    def _kept(self, noisy: Tensor, batch: Batch) -> Tensor:
        """What the model itself predicts. It comes before the network's pass: what a pass made lives until the next one."""
        with torch.no_grad(), self.trainee.resting(), self.accelerator.autocast():
            return self.host.predict(noisy, batch.timesteps, batch.conditioning, batch.sizes)

    def _look(self, losses: list[Tensor]) -> float:
        """The mean loss of all processes. They hear as well what any of them was told, so that they decide alike."""
        loss = torch.stack(losses).mean()
        told = [float(order.is_set()) for order in (self.orders.stop, self.orders.cancel)]
        mean, stop, cancel = mean_over_all(self.accelerator, torch.cat([loss[None], loss.new_tensor(told)])).tolist()
        for order, asked in ((self.agreed.stop, stop), (self.agreed.cancel, cancel)):
            if asked:
                order.set()
        return mean

    def _trouble(self, loss: float) -> str:
        """What is wrong with the step at hand, empty where nothing is. Weights are looked at before they are saved or remembered."""
        if trouble := self.recovery.trouble(self.step, loss):
            return trouble
        self.recovery.confirm(self.step)
        if (self._saving or self.recovery.snapshot_due(self.step)) and not finite(self.network):
            return "The weights are not numbers"
        return ""

    def _remember(self) -> None:
        """Keeps a state to go back to now and then, and whenever it was validated."""
        every = self.config.validation_every
        validated = bool(every) and self.step % every == 0
        if self.recovery.ways and (validated or self.recovery.snapshot_due(self.step)):
            self.recovery.keep(self.step, self.learner.state, self.validation_loss if validated else None)

    def _told_of_room(self) -> Iterator[Progress]:
        """What had to be done for want of memory, once."""
        while self.room.warnings:
            yield Progress("warning", self.step, self.steps, message=self.room.warnings.pop(0))

    def _go_back(self, trouble: str) -> Progress:
        """To the last good weights, at half the rate; to the best ones, and to the end, where that was done as often as is allowed.

        Raises `TrainingFailed` where the run has come to nothing better than an untrained network.
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
        if self.main:
            if self.saving.step > self.step:  # or a resumed run would go on from weights that were given up
                self.saving.state(self.step, self._about())
            self.folder.forget_after(self.step)
        if self.board is not None:
            self.board.close()
            self.board.begin(self.step)
        if self.exhausted:
            then = f"the rate was halved {self.recovery.used} times already, so the run ends with the best weights, those of step {self.step}."
        else:
            then = f"back to step {self.step}, and on at {self.recovery.rate:g} of the rate that was asked for."
        return Progress("warning", failed, self.steps, message=f"{trouble} at step {failed}: {then}")

    def _validate(self) -> Progress:
        """Mean weighted loss on pictures that are never trained on, at fixed timesteps and noise. Each process takes some of the batches."""
        batches = self.batches.validation()
        if not batches:
            return Progress("validation", self.step, self.steps)
        share = batches[self.accelerator.process_index :: self.accelerator.num_processes]
        with self.learner.shown(), torch.no_grad():
            losses = self.room.fit(lambda: [self._whole_loss(batch) for batch in share], VALIDATION_TIMESTEPS, "while validating")
            total = torch.stack(losses).sum() if losses else torch.zeros((), device=self.host.device)
            self.validation_loss = float(mean_over_all(self.accelerator, total)) * self.accelerator.num_processes / len(batches)
            self.best.measured(self.step, self.validation_loss, self.network.state_dict)
        if self.learner.average is not None:
            self.best.beside(self.step, self.network.state_dict)
        self._note(Row(self.step, None, self.validation_loss, None))
        return Progress("validation", self.step, self.steps, validation_loss=self.validation_loss)

    def _preview(self) -> Iterator[Progress]:
        """Pictures of the preview prompts, each time from the same noise; a run without them is better than none."""
        if self.previews.failed:
            return
        with self.learner.shown():
            trouble = self.previews.draw(self.step)
        if trouble:
            yield Progress("warning", self.step, self.steps, message=trouble)
            return
        if self.previews.last:
            self.saving.preview = self.previews.last[0]
        if self.board is not None:
            self.board.previews(self.step, self.previews.last)
        yield Progress("preview", self.step, self.steps, message="\n".join(self.previews.prompts), pictures=self.previews.last)

    def _checkpoint(self) -> Progress:
        return Progress("checkpoint", self.step, self.steps, path=self.saving.checkpoint(self.step, self._about()))

    def _about(self) -> dict[str, Any]:
        """What the run remembers over a pause, beside its network and optimizer."""
        return {
            "recovery": (self.recovery.rate, self.recovery.used), "losses": self.recovery.memory, "room": self.room.state, "room_for": self.room_for,
            "seconds": self.seconds, "yardstick": self.yardstick,
        }  # fmt: skip

    def _finish(self) -> Progress:
        if self.agreed.cancel.is_set():
            self.network.eval().requires_grad_(False)
            return Progress("cancelled", self.step, self.steps, message="Cancelled; no file was written.")
        kept = self.best.keep and self.best.weights is not None and self.best.step != self.step
        if self.main:
            written = self.saving.finish(self.step, self._about(), kept)
            self.previews.save_sheet()
        else:
            written = self.saving.finish_without_files(self.step, kept)
        written = told_by_main(self.accelerator, written)
        kind = "finished" if self.settled or self.step >= self.steps else "stopped"
        if self.main:
            files = {path.name: sha256(path) for path in written if path.suffix != ".pt"}  # in these torch names places in memory
            self.folder.note_result({"ending": kind, "step": self.step, "seconds": round(self.seconds, 3), "files": files})
        return Progress(
            kind, self.step, self.steps, message=self._ending(written, kept), validation_loss=self.best.loss if kept else self.validation_loss,
            pictures=self.previews.last, path=written[0],
        )

    def _ending(self, written: list[Path], kept: bool) -> str:
        early = f"The validation loss has not fallen since step {self.best.step}, so the run ends early. " if self.settled else ""
        which = f", with the weights of step {self.best.step}, whose validation loss was lowest" if kept else ""
        return f"{early}Saved {' and '.join(path.name for path in written)}{which}."
