"""A network in training: its optimizer, its rate, the average of its weights, and all of that as a state to go on from."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .batches import Batch
from .board import check_board
from .config import TrainingConfig, options
from .ema import Average
from .errors import ConfigError
from .memory import Offload
from .optimizers import (
    averages_weights,
    evaluating,
    finds_own_rate,
    make_optimizer,
    restore,
    set_training,
    trial_optimizer,
)
from .preview_lines import read_lines
from .processes import average_gradients
from .schedule import LearningRate, is_auto, parse_stages, stage_at
from .trainees import Trainee


def learning_rate(config: TrainingConfig) -> LearningRate:
    """The rate that the options ask for. Raises `ConfigError`."""
    return LearningRate.parse(
        config.learning_rate, config.rate_schedule, config.warmup_steps, floor=config.rate_floor, power=config.rate_power,
        cycles=config.rate_cycles, growth=config.rate_cycle_growth, decay=config.rate_cycle_decay,
    )  # fmt: skip


def check_options(config: TrainingConfig, device: torch.device) -> None:
    """Raises `ConfigError` for what would only be found out once every picture is encoded. `device` is where the network will be trained."""
    learning_rate(config)
    parse_stages(config.clip_schedule, "Clipping over time")
    if averages_weights(trial_optimizer(config.optimizer, config.optimizer_arguments, device)) and config.ema_decay:
        raise ConfigError(f"{config.optimizer} averages the weights itself: set Average of weights (ema_decay) to 0.")
    read_lines(config.preview_prompts)
    check_board(config)
    for name in ("early_stop", "keep_best"):
        if getattr(config, name) and not (config.validation_every and config.validation_share):
            label = options(TrainingConfig)[name].label
            raise ConfigError(f"{label} ({name}) needs validations: set Validate every (validation_every) and Held-out share (validation_share).")


class Learner:
    """The trainee's network and what changes its weights. The trainee has begun, and `check_options` has found nothing."""

    def __init__(self, trainee: Trainee, config: TrainingConfig, accelerator: Any) -> None:
        self.trainee, self.config, self.accelerator = trainee, config, accelerator
        self.network = trainee.network
        self.network.to(trainee.host.device, torch.float32).train()
        self.network.requires_grad_(True)
        self.rate, self.clipping = learning_rate(config), parse_stages(config.clip_schedule, "Clipping over time")
        groups = trainee.groups(is_auto(config.learning_rate) and not finds_own_rate(config.optimizer))
        self.optimizer = make_optimizer(config.optimizer, config.optimizer_arguments, groups)
        self.denoiser, self._prepared = Denoiser(trainee), accelerator.prepare(self.optimizer)
        self.offload = Offload(self.optimizer) if config.optimizer_offload else None
        self.average = Average(self.network, config.ema_decay) if config.ema_decay else None
        self.warnings: list[str] = []
        if averages_weights(self.optimizer) and config.rate_schedule != "constant":
            self.warnings.append(f"{config.optimizer} is meant to go without a schedule: set Rate over time (rate_schedule) to constant.")

    def set_rate(self, step: int, steps: int, share: float) -> float:
        """Sets the rate of a step, times `share`; gives the first network's."""
        rate = self.rate.at(step, steps) * share
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_scale"]
        return self.optimizer.param_groups[0]["lr"]

    def update(self, step: int) -> None:
        """Changes the weights by their gradients, once all of the step's batches have given theirs, in all processes."""
        average_gradients(self.accelerator, self.network)
        self._clip(stage_at(self.clipping, step))
        with self.offload.at_hand() if self.offload is not None else nullcontext():
            self._prepared.step()
        self.forget_gradients()
        if self.average is not None:
            self.average.update(step)

    def forget_gradients(self) -> None:
        """A step begins anew."""
        self.optimizer.zero_grad()  # that of accelerate 0.21 leaves zeros, by which momentum moves what a step has not used

    def _clip(self, share: float) -> None:
        """accelerate unscales fp16 gradients first; A1111 clips the scaled ones (hypernetwork.py:713-716)."""
        if value := self.config.clip_value * share:
            self.accelerator.clip_grad_value_(self.denoiser.parameters(), value)
        if norm := self.config.clip_norm * share:
            self.accelerator.clip_grad_norm_(self.denoiser.parameters(), norm)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within it the network is the one that will be saved: nothing is dropped out, and weights are averaged where they are to be."""
        self.network.eval()
        try:
            with evaluating(self.optimizer), self.average.shown() if self.average is not None else nullcontext():
                yield
        finally:
            self.network.train()

    def settle(self) -> None:
        """The network stays as `shown` has it; this ends the training."""
        set_training(self.optimizer, False)
        if self.average is not None:
            self.average.settle()
        self.network.eval()
        self.network.requires_grad_(False)

    def state(self) -> dict[str, Any]:
        """All that is needed to go on from here."""
        scaler = self.accelerator.scaler
        return {
            "structure": self.trainee.outline(),
            "weights": self.network.state_dict(),
            "optimizer_name": self.config.optimizer,
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "average": self.average.weights if self.average is not None else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes a state over. Raises `ConfigError` for that of another structure."""
        if state["structure"] != self.trainee.outline():
            raise ConfigError(
                f"The run {self.config.name!r} was made with another structure or other layers; choose those again, or start anew."
            )
        self.network.load_state_dict(state["weights"])
        before = state.get("optimizer_name", self.config.optimizer)
        if before == self.config.optimizer:
            restore(self.optimizer, state["optimizer"], self.config.optimizer_arguments)
        else:
            self.warnings.append(f"The optimizer was {before} and is {self.config.optimizer} now, so it begins without what the other one had gathered.")
        if self.accelerator.scaler is not None and state.get("scaler"):
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load(state.get("average") or state["weights"])


class Denoiser(nn.Module):
    """The UNet's prediction as a function of the networks."""

    def __init__(self, trainee: Trainee) -> None:
        super().__init__()
        self.trainee, self.network = trainee, trainee.network

    def forward(self, noisy: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The prediction [b, c, h, w] and the trainee's penalty (0 where it has none)."""
        with self.trainee.acting(batch) as terms:
            predicted = self.trainee.host.predict(noisy, batch.timesteps, batch.conditioning, batch.sizes)
        return predicted, torch.stack(terms).mean() if terms else predicted.new_zeros((), dtype=torch.float32)
