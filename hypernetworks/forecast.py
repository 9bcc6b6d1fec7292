"""What a run will take of the device's memory, before it starts: a step is gone through with tensors that have shapes and no values."""
from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from .attention import attached
from .batches import Batch, Batches
from .config import TrainingConfig
from .host import Host
from .learner import Denoiser
from .memory import free_bytes, without_inputs_of_convolutions
from .objective import Objective
from .optimizers import make_optimizer
from .trainees import Trainee

SMALL = 500e6  # bytes of a UNet for which nobody wonders whether there is room
FLOAT32 = 4  # bytes; all that learns is kept in it
PROBE = 256  # side of the weight that tells what an optimizer remembers: packages in 8 bit keep small ones whole
AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Forecast:
    """Bytes by what they are for, in a step with the largest pictures. Previews come at other times and are not in it, nor is what PyTorch and the
    device's driver take for themselves."""

    model: int  # the UNet's weights
    network: int  # weights that are trained, and their average
    gradients: int
    optimizer: int  # what it remembers between steps
    activations: int  # of both passes, gradients included as they come
    accumulated: bool = False  # whether there are gradients before the passes
    offloaded: bool = False  # whether the optimizer's state is on the device for the update only
    free: int | None = None  # what the run can have, its model's place included

    @property
    def needed(self) -> int:
        """At most at once: in the passes, or in the update of the weights."""
        always = self.model + self.network
        passes = self.activations + (self.gradients if self.accumulated else 0) + (0 if self.offloaded else self.optimizer)
        return always + max(passes, self.gradients + self.optimizer)

    @property
    def fits(self) -> bool:
        """Whether there is room, as far as anybody can say."""
        return self.free is None or self.needed <= self.free

    @property
    def sentence(self) -> str:
        """For the user."""
        free = "" if self.free is None else f"; {_gigabytes(self.free)} are free"
        less = "" if self.fits else " Gradient checkpointing, a smaller batch or a lower resolution take less; where it does not fit, a step is cut into parts."
        return f"This needs about {_gigabytes(self.needed)}{free}.{less}"

    def table(self) -> list[tuple[str, str]]:
        """What the sum consists of, in words."""
        parts = {"model": self.model, "network": self.network, "optimizer": self.optimizer}
        return [(label, _gigabytes(value)) for label, value in (parts | {"one step": self.activations}).items() if value]


def foresee(trainee: Trainee, batches: Batches, objective: Objective) -> Forecast | None:
    """The forecast for a run of this trainee, which is begun here. None where the host's UNet cannot do without values."""
    host, config = trainee.host, trainee.config
    trainee.begin(None)
    trainee.network.to(host.device, torch.float32).train().requires_grad_(True)
    model = model_bytes(host)
    weights = FLOAT32 * sum(parameter.numel() for parameter in trainee.network.parameters())
    network, optimizer = weights * (2 if config.ema_decay else 1), int(weights / FLOAT32 * _optimizer_bytes(config, host.device))
    try:
        activations = _step_bytes(trainee, batches.blank(), objective)
    except Exception as error:  # a web UI's own attention may ask for values or for a device, each in its own way
        log.info("The memory of a step cannot be foreseen here: %s", error)
        return None
    free = free_bytes(host.device)
    return Forecast(
        model, network, weights, optimizer, activations, config.gradient_accumulation > 1,
        config.optimizer_offload and host.device.type != "cpu", None if free is None else free + _resident(host.unet, host.device),
    )


def model_bytes(host: Host) -> int:
    """Bytes of the UNet's weights and buffers."""
    return sum(tensor.nbytes for tensor in (*host.unet.parameters(), *host.unet.buffers()))


def _resident(unet: nn.Module, device: torch.device) -> int:
    return sum(parameter.nbytes for parameter in unet.parameters() if parameter.device.type == device.type)


def _optimizer_bytes(config: TrainingConfig, device: torch.device) -> float:
    """What the optimizer remembers of each weight, measured on a step of one matrix."""
    weight = nn.Parameter(torch.ones(PROBE, PROBE, device=device))
    optimizer = make_optimizer(config.optimizer, config.optimizer_arguments, [{"params": [weight], "rate_scale": 1.0}])
    weight.grad = torch.full_like(weight, 0.1)
    optimizer.step()
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)) / weight.numel()


def _step_bytes(trainee: Trainee, batch: Batch, objective: Objective) -> int:
    """The most bytes that forward and backward pass of a step hold at once, beside weights and what is kept between steps."""
    config, host = trainee.config, trainee.host
    step = _Step(trainee, batch, objective)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    weights = {name: fake.from_tensor(value).detach().requires_grad_(value.requires_grad) for name, value in step.named_parameters()}

    with host.training(config.gradient_checkpointing), without_inputs_of_convolutions(host.unet), attached(host.unet, [trainee.edit]), torch.enable_grad():
        with fake, _Watch() as watch, torch.autocast(host.device.type, AUTOCAST.get(config.mixed_precision), config.mixed_precision != "no"):
            torch.func.functional_call(step, weights, ())
    return watch.most


class _Step(nn.Module):
    """Forward and backward pass as one call, with weights that can be replaced."""

    def __init__(self, trainee: Trainee, batch: Batch, objective: Objective) -> None:
        super().__init__()
        self.denoiser, self.penalty, self.batch, self.objective = Denoiser(trainee), trainee.penalty, batch, objective

    def forward(self) -> None:
        predicted, penalty = self.denoiser(self.objective.noisy(self.batch), self.batch)
        (self.objective.loss(predicted, self.batch) + self.penalty * penalty).backward()


class _Watch(TorchDispatchMode):
    """Counts the bytes of all tensors that are made within and still held."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._known: dict[StorageWeakRef, int] = {}  # with their bytes; Python's own references to a storage dangle in torch 2.1
        self._bound = 0  # at most so many are held

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        self._known = {storage: size for storage, size in self._known.items() if not storage.expired()}
        return sum(self._known.values())

    def __torch_dispatch__(self, function: Any, types: Any, inputs: tuple = (), named: dict | None = None) -> Any:
        made = function(*inputs, **(named or {}))
        if all(result.alias_info is None for result in function._schema.returns):  # else they are views, or were there before
            for tensor in made if isinstance(made, (tuple, list)) else [made]:
                if isinstance(tensor, Tensor):
                    self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        if (reference := StorageWeakRef(storage)) in self._known:
            return
        self._known[reference] = storage.nbytes()
        self._bound += storage.nbytes()
        if self._bound > self.most:  # only then is it worth the time to look which ones are gone
            self._bound = self.held
            self.most = max(self.most, self._bound)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 50e6 else f"{count / 1e6:.0f} MB"
