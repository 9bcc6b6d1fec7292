"""The memory of the device that trains: what is free of it, what need not be kept in it, what goes on when it is full, and an optimizer that keeps its
state elsewhere."""
from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from .batches import Batch
from .errors import TrainingFailed

Found = TypeVar("Found")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory was full: a graphics card's, Apple's, the machine's own."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.cuda.OutOfMemoryError) or (isinstance(error, Exception) and should_reduce_batch_size(error))


def free_bytes(device: torch.device) -> int | None:
    """What this process can still take of a device's memory; None where nobody can say."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # PyTorch holds it for its next tensors
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "cpu":
        import psutil  # accelerate brings it

        return psutil.virtual_memory().available
    return None


def clear(device: torch.device) -> None:
    """What nobody holds any more is given back."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def without_inputs_of_convolutions(model: nn.Module) -> Iterator[None]:
    """Within it the model's frozen convolutions keep the shapes of what they read for the backward pass, and no values: these would be for a gradient
    of their weights, yet PyTorch keeps them without asking (ConvolutionBackward0 in its derivatives.yaml). The gradients are the same."""
    frozen = [part for part in model.modules() if isinstance(part, nn.Conv2d) and not any(weight.requires_grad for weight in part.parameters())]
    inside: list[saved_tensors_hooks] = []

    def enter(part: nn.Module, inputs: tuple) -> None:
        shape = inputs[0].shape
        inside.append(saved_tensors_hooks(lambda kept: _shape_of(kept) if kept.shape == shape and kept.is_contiguous() else kept, lambda kept: kept))
        inside[-1].__enter__()

    def leave(part: nn.Module, inputs: tuple, output: object) -> None:
        inside.pop().__exit__()

    handles = [handle for part in frozen for handle in (part.register_forward_pre_hook(enter), part.register_forward_hook(leave, always_call=True))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _shape_of(tensor: Tensor) -> Tensor:
    """A tensor like it of a single number."""
    return tensor.new_zeros(1).expand(tensor.shape)


class Room:
    """How many samples go through the model at once, and whether its activations are computed anew for the backward pass (checkpointing).

    Each time that the memory is full the samples are halved; single ones are checkpointed. A step has the same samples and gradients as
    before, only in more parts.
    """

    def __init__(self, device: torch.device, samples: int, checkpointing: bool, checkpoint: Callable[[], None]) -> None:
        """`checkpoint` switches it on."""
        self.device, self.samples, self.checkpointing = device, samples, checkpointing
        self._checkpoint, self._wished = checkpoint, (samples, checkpointing)
        self.warnings: list[str] = []  # that nobody was told of yet

    @property
    def state(self) -> tuple[int, bool] | None:
        """What a run that goes on begins with, None where the memory was never full."""
        found = self.samples, self.checkpointing
        return None if found == self._wished else found

    def restore(self, state: tuple[int, bool], samples: int) -> str:
        """Takes over what an earlier run found out, as long as it is less. Gives a sentence on what that means for batches of so many `samples`."""
        self.samples, self.checkpointing = min(self.samples, state[0]), self.checkpointing or state[1]
        return f"{full(self.device)} before this run was paused, so {self._means(samples) or self._means(self._wished[0])}."

    def parts(self, batch: Batch) -> list[Batch]:
        """The batch in as few parts as there is room for."""
        return [batch.part(start, start + self.samples) for start in range(0, len(batch), self.samples)]

    def fit(self, work: Callable[[], Found], samples: int, place: str) -> Found:
        """What `work` gives, which takes batches of so many `samples` in parts; done again with less at once where the memory is full.

        Raises `TrainingFailed` that names the `place` where nothing is left to be done.
        """
        made_room = False
        while True:
            try:
                found = work()
                break
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # here the handler is left, whose traceback holds all tensors of the pass that failed
            self._make(samples, place)
            made_room = True
        if made_room:
            self.warnings.append(self._sentence(samples, place))
        return found

    def _make(self, samples: int, place: str) -> None:
        tried = min(self.samples, samples)
        if tried == 1 and self.checkpointing:
            raise TrainingFailed(out_of_memory(self.device, place))
        if tried > 1:
            self.samples = -(-tried // 2)
        else:
            self.checkpointing = True
            self._checkpoint()
        clear(self.device)

    def _sentence(self, samples: int, place: str) -> str:
        return f"{full(self.device)} {place}; from here {self._means(samples)}. The result is the same, each step takes longer."

    def _means(self, samples: int) -> str:
        """For batches of so many."""
        parts = f"each batch of {samples} goes through the model in parts of {self.samples}" if self.samples < samples else ""
        checkpointing = "gradient checkpointing is on" if self.checkpointing else ""
        return " and ".join(filter(None, (parts, checkpointing)))


def out_of_memory(device: torch.device, place: str) -> str:
    """What is said where a run ends for want of memory."""
    return f"{full(device)} {place}; choose gradient checkpointing, a smaller batch or a lower resolution."


def full(device: torch.device) -> str:
    """What is said of a device whose memory is full, without a full stop."""
    return f"The {'graphics card' if device.type == 'cuda' else 'machine' if device.type == 'cpu' else 'device'} ran out of memory"


class Offload:
    """Keeps an optimizer's state in the machine's memory; on the device it is within `at_hand` only, for the step itself."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._moved: set[str] = set()  # names of what the optimizer itself wants on the device

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """The state is where the optimizer wants it within."""
        for weight, state in self.optimizer.state.items():
            for name in self._moved & state.keys():
                state[name] = state[name].to(weight.device)
        yield
        for state in self.optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.device.type != "cpu":
                    self._moved.add(name)
                    state[name] = value.to("cpu")
