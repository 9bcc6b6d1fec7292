"""Training: a folder of captioned pictures goes in, a hypernetwork file comes out, and `Progress` events tell of it on the way.

The UNet is frozen and keeps no weight gradients. A step costs one forward and one backward to the networks' inputs.
"""
from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .attention import attached
from .batches import Batch, Batches, left_out
from .checkpoint import Row, RunFolder
from .config import TrainingConfig, plain, read
from .dataset import Dataset
from .errors import ConfigError, Interrupted, NameTaken, TrainingFailed
from .files import check_name
from .host import GenerationRequest, Host
from .losses import add_noise, denoising_loss, denoising_target, min_snr_weights
from .networks import training_metadata
from .optimizers import make_optimizer
from .plan import seed_for
from .schedule import LearningRate, is_auto
from .trainees import Network, Trainee, check_trainable, trainee_for

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


class HypernetworkTrainer:
    """Trains one network. `run` yields what happens, `train` just runs to the end; `stop` and `cancel` may come from any thread."""

    def __init__(self, hypernetwork: Network | None = None, config: Mapping[str, Any] | TrainingConfig | None = None) -> None:
        """`hypernetwork`: one to train on; None makes a new one of the configuration's kind. A network's own structure counts, not the
        configuration's, and its name where the configuration has none."""
        config = config if isinstance(config, TrainingConfig) else read(TrainingConfig, config or {})
        if hypernetwork is not None:
            check_trainable(hypernetwork)
            config = replace(config, name=config.name or hypernetwork.name or "hypernetwork")
        self.hypernetwork, self.config = hypernetwork, config
        self._stop = threading.Event()
        self._cancel = threading.Event()

    def stop(self) -> None:
        """Ends the run after the step at hand; the network and a checkpoint are saved."""
        self._stop.set()

    def cancel(self) -> None:
        """Ends the run after the step at hand; no network file is written."""
        self._cancel.set()

    def train(
        self, dataset: str | Path | Dataset | None = None, host: Host | None = None, *, resume: bool = False, overwrite: bool = False
    ) -> Path:
        """Runs to the end and gives the path of the network's file. Raises `TrainingFailed` where the run was cancelled."""
        end = deque(self.run(dataset, host, resume=resume, overwrite=overwrite), maxlen=1).pop()
        if end.path is None:
            raise TrainingFailed(end.message)
        return end.path

    def run(
        self, dataset: str | Path | Dataset | None = None, host: Host | None = None, *, resume: bool = False, overwrite: bool = False
    ) -> Iterator[Progress]:
        """One training run as events.

        `dataset` is a folder or a read one (default: the configuration's folder), `host` the model (default: the embedded one).
        `resume` goes on from the run's last checkpoint, else from the file of that name. `overwrite` allows to replace that file.
        Raises `NameTaken` where the file exists and neither was asked for.
        """
        host = host or _standalone_host()
        check_name(self.config.name)
        trainee = trainee_for(self.hypernetwork, self.config, host)
        folder = RunFolder(host.folders.runs, self.config.name)
        self._check_free(trainee, folder, resume, overwrite)
        if self.config.mixed_precision == "fp16" and host.device.type == "cpu":
            raise ConfigError("Precision fp16 needs a graphics card; on this machine choose no or bf16.")
        dataset = dataset if isinstance(dataset, Dataset) else trainee.read(dataset or self.config.dataset)
        yield from (Progress("warning", message=message) for message in [*dataset.warnings, *left_out(dataset.skipped)])
        accelerator = _accelerator(self.config, host.device)
        batches = trainee.batches(dataset, accelerator.num_processes, accelerator.process_index)
        if not (yield from self._preparing(batches.prepare())):
            return
        yield from (Progress("warning", message=message) for message in batches.warnings)
        run = _Run(self, trainee, accelerator, batches, folder)
        run.begin(resume)
        if run.network.step == run.step == 0 and not (yield from self._preparing(trainee.learn_beforehand(batches))):
            return
        try:
            with host.training(self.config.gradient_checkpointing), attached(host.unet, [trainee.edit]):
                yield from run.events()
        except torch.cuda.OutOfMemoryError:
            raise TrainingFailed(
                f"The graphics card ran out of memory at step {run.step}; choose gradient checkpointing, a smaller batch or a lower resolution."
            ) from None

    def _preparing(self, work: Iterator[tuple[int, int, str]]) -> Generator[Progress, None, bool]:
        """Tells of what goes before the first step; whether it came to its end."""
        for done, total, what in work:
            yield Progress("preparing", done, total, what)
            if self._cancel.is_set() or self._stop.is_set():
                yield Progress("cancelled", message="Cancelled before the first step.")
                return False
        return True

    def _check_free(self, trainee: Trainee, folder: RunFolder, resume: bool, overwrite: bool) -> None:
        """Raises `NameTaken` where a file would be replaced that is not to be."""
        if trainee.target.exists() and not (resume or overwrite):
            raise NameTaken(f"A hypernetwork named {self.config.name!r} exists already; replace it, continue its training, or choose another name.")
        pt, ours = trainee.target.with_suffix(".pt"), resume and folder.about().get("options", {}).get("also_pt")
        if self.config.also_pt and pt.exists() and not (overwrite or ours):
            raise NameTaken(f"There is a file {pt.name} already; replace it, choose another name, or turn off Also write .pt (also_pt).")


class _Run:
    """A run in progress: the network, its optimizer and the loop."""

    def __init__(self, trainer: HypernetworkTrainer, trainee: Trainee, accelerator: Any, batches: Batches, folder: RunFolder) -> None:
        self.trainer, self.trainee, self.host, self.accelerator = trainer, trainee, trainee.host, accelerator
        self.batches, self.folder = batches, folder
        self.config = config = trainer.config
        self.steps = config.max_steps
        if config.max_epochs:
            self.steps = min(self.steps, math.ceil(config.max_epochs * batches.batches_per_epoch / config.gradient_accumulation))
        self.step = 0
        self.learning_rate = LearningRate.parse(config.learning_rate, config.rate_schedule, config.warmup_steps)
        self.alphas_cumprod = self.host.alphas_cumprod.to(self.host.device)
        self.last_previews: tuple[Path, ...] = ()
        self.validation_loss: float | None = None

    def begin(self, resume: bool) -> None:
        """Network and optimizer, at the run's start or where it was left."""
        state = self.folder.load_state() if resume else None
        self.trainee.begin(self.trainee.target if resume and state is None and self.trainee.target.exists() else None)
        self.trainer.hypernetwork = self.network = self.trainee.network
        self.network.to(self.host.device, torch.float32).train()
        self.network.requires_grad_(True)
        groups = self.trainee.groups(is_auto(self.config.learning_rate))
        optimizer = make_optimizer(self.config.optimizer, self.config.optimizer_arguments, groups)
        if state is not None:
            self._restore(state, optimizer)
        self.denoiser, self.optimizer = self.accelerator.prepare(Denoiser(self.trainee), optimizer)
        self.folder.begin({"options": plain(self.config), "model": vars(self.host.model), "pictures": self.batches.picture_count}, self.step)

    def _restore(self, state: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
        if state["structure"] != self.trainee.outline():
            raise ConfigError(
                f"The run {self.folder.path.name!r} was made with another structure or other layers; choose those again, or start anew."
            )
        self.network.load_state_dict(state["weights"])
        asked = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state.get("scaler"):
            self.accelerator.scaler.load_state_dict(state["scaler"])
        for group, values in zip(optimizer.param_groups, asked, strict=True):
            group.update(values)  # what is asked now counts, not what the checkpoint was made with
        self.step = state["step"]

    def events(self) -> Iterator[Progress]:
        """The loop. Ends with "finished", "stopped" or "cancelled"."""
        losses: list[Tensor] = []
        report_every = 1 if self.host.device.type == "cpu" else REPORT_EVERY
        if self._due(self.config.validation_every, at_start=True):
            yield self._validate()
        if self._due(self.config.preview_every, at_start=True):
            yield self._preview()
        clock = _Clock(self.steps - self.step)
        while self.step < self.steps and not self._ending():
            self.step += 1
            rate = self._set_rates()
            losses.append(self._train_step())
            clock.tick()
            if self.step % report_every == 0 or self.step == self.steps:
                loss = self._mean_loss(losses)
                losses.clear()
                self.folder.add_row(Row(self.step, loss, None, rate))
                yield Progress("step", self.step, self.steps, loss=loss, rate=rate, seconds_left=clock.seconds_left())
            with clock.paused():
                if self._due(self.config.validation_every):
                    yield self._validate()
                if self._due(self.config.preview_every):
                    yield self._preview()
                if self._due(self.config.checkpoint_every) and self.step < self.steps:
                    yield self._checkpoint()
        yield self._finish()

    def _ending(self) -> bool:
        return self.trainer._stop.is_set() or self.trainer._cancel.is_set()

    def _due(self, every: int, at_start: bool = False) -> bool:
        if not every or not self.accelerator.is_main_process:
            return False
        return self.step == 0 if at_start else (self.step % every == 0 or self.step == self.steps)

    def _set_rates(self) -> float:
        rate = self.learning_rate.at(self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_scale"]
        return self.optimizer.param_groups[0]["lr"]

    def _train_step(self) -> Tensor:
        """One update of the weights; gives the loss without waiting for the device."""
        total = torch.zeros((), device=self.host.device)
        with _seeded(seed_for(self.config.seed, self.step, 0, "dropout"), self.host.device):
            for micro_step in range(self.config.gradient_accumulation):
                with self.accelerator.accumulate(self.denoiser):
                    loss = self._loss(self.batches.at(self.step, micro_step))
                    self.accelerator.backward(loss)
                    if self.accelerator.sync_gradients and self.config.clip_norm:
                        # accelerate unscales fp16 gradients first; A1111 clips the scaled ones (hypernetwork.py:713-716)
                        self.accelerator.clip_grad_norm_(self.denoiser.parameters(), self.config.clip_norm)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                total += loss.detach() / self.config.gradient_accumulation
        return total

    def _loss(self, batch: Batch) -> Tensor:
        alphas = self.alphas_cumprod[batch.timesteps]
        noisy = add_noise(batch.latents, batch.noise, alphas)
        with self.accelerator.autocast():
            predicted, penalty = self.denoiser(noisy, batch)
        kind = self.host.model.prediction_type
        weights = min_snr_weights(alphas, self.config.min_snr_gamma, kind)
        target = denoising_target(batch.latents, batch.noise, alphas, kind)
        return denoising_loss(predicted, target, weights, self.config.loss) + self.trainee.penalty * penalty

    def _mean_loss(self, losses: list[Tensor]) -> float:
        loss = float(torch.stack(losses).mean())
        if not math.isfinite(loss):
            raise TrainingFailed(
                f"The loss is not a number at step {self.step}. What was saved before is untouched; lower the learning rate and continue."
            )
        return loss

    def _validate(self) -> Progress:
        """Mean weighted loss on pictures that are never trained on, at fixed timesteps and noise."""
        self.network.eval()
        with torch.no_grad():
            losses = [self._loss(batch) for batch in self.batches.validation()]
        self.network.train()
        if not losses:
            return Progress("validation", self.step, self.steps)
        self.validation_loss = float(torch.stack(losses).mean())
        self.folder.add_row(Row(self.step, None, self.validation_loss, None))
        return Progress("validation", self.step, self.steps, validation_loss=self.validation_loss)

    def _preview(self) -> Progress:
        """Pictures of the preview prompts, each time from the same noise."""
        config, side = self.config, self.config.resolution or self.host.model.resolution
        self.network.eval()
        paths = []
        for number, prompt in enumerate(self.batches.preview_prompts()):
            request = GenerationRequest(
                prompt, steps=config.preview_steps, cfg_scale=config.preview_cfg_scale, width=side, height=side, seed=config.preview_seed,
                literal=not config.preview_prompts.strip(),  # captions are; what a user writes for the host is in the host's syntax
            )
            try:
                with torch.no_grad(), self.trainee.drawing(self.batches, number):
                    picture = self.host.generate(request, lambda step, steps: self.trainee.before_step())[0]
            except Interrupted:  # the host says so in `report`, too; the run is stopped there
                break
            paths.append(self.folder.preview_path(self.step, number + 1))
            picture.save(paths[-1])
        self.network.train()
        self.last_previews = tuple(paths)
        return Progress("preview", self.step, self.steps, message="\n".join(self.batches.preview_prompts()), pictures=self.last_previews)

    def _checkpoint(self) -> Progress:
        """The network as a file, and all that is needed to go on from here."""
        self._refuse_damaged()
        self._describe()
        (path,) = self.trainee.save(self.folder.checkpoint_path(self.step))
        self.folder.save_state(
            {
                "step": self.step,
                "structure": self.trainee.outline(),
                "weights": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
            }
        )
        return Progress("checkpoint", self.step, self.steps, path=path)

    def _finish(self) -> Progress:
        self.network.eval()
        self.network.requires_grad_(False)
        if self.trainer._cancel.is_set():
            return Progress("cancelled", self.step, self.steps, message="Cancelled; no file was written.")
        self._checkpoint()
        written = self.trainee.save(self.trainee.target)
        kind = "finished" if self.step >= self.steps else "stopped"
        return Progress(
            kind, self.step, self.steps, message=f"Saved {' and '.join(path.name for path in written)}.", validation_loss=self.validation_loss,
            pictures=self.last_previews, path=written[0],
        )

    def _refuse_damaged(self) -> None:
        if not all(torch.isfinite(parameter).all() for parameter in self.network.parameters()):
            raise TrainingFailed(f"The weights are not numbers at step {self.step}; nothing was saved over the last good checkpoint.")

    def _describe(self) -> None:
        self.network.name, self.network.step = self.config.name, self.step
        preview = self.last_previews[0] if self.last_previews else None
        self.network.metadata.update(training_metadata(self.config, self.host.model, self.batches.picture_count, preview))


class Denoiser(nn.Module):
    """The UNet's prediction as a function of the networks: one module, so that every process's gradients meet when there are several."""

    def __init__(self, trainee: Trainee) -> None:
        super().__init__()
        self.trainee, self.network = trainee, trainee.network

    def forward(self, noisy: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The prediction [b, c, h, w] and the trainee's penalty (0 where it has none)."""
        with self.trainee.acting(batch) as terms:
            predicted = self.trainee.host.predict(noisy, batch.timesteps, batch.conditioning, batch.sizes)
        return predicted, torch.stack(terms).mean() if terms else predicted.new_zeros((), dtype=torch.float32)


class _Clock:
    """Seconds left, from a running mean of the steps' durations; pauses do not count."""

    def __init__(self, steps_left: int) -> None:
        self.steps_left, self.mean, self.last = steps_left, None, time.monotonic()

    def tick(self) -> None:
        now = time.monotonic()
        duration = now - self.last
        self.mean = duration if self.mean is None else 0.95 * self.mean + 0.05 * duration
        self.last, self.steps_left = now, self.steps_left - 1

    def seconds_left(self) -> float:
        return (self.mean or 0.0) * max(0, self.steps_left)

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.last += time.monotonic() - start


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global random state starts from `seed` within (dropout draws from it), and is afterwards what it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _accelerator(config: TrainingConfig, device: torch.device) -> Any:
    """A new accelerator on the host's device. Its process-wide state is forgotten first, or a second run in one process would keep the
    first one's precision."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState):
        state._reset_state()
    if PartialState._shared_state and not torch.distributed.is_initialized():
        PartialState._reset_state()
    return Accelerator(
        mixed_precision=config.mixed_precision, gradient_accumulation_steps=config.gradient_accumulation, cpu=device.type == "cpu"
    )


def _standalone_host() -> Host:
    from .hosts.diffusers import DiffusersHost

    return DiffusersHost()
