"""Several processes that train one network together, each on a device of its own, as `accelerate launch` starts them. PyTorch is loaded at
need, since the command line asks here who speaks."""
from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PATIENCE = timedelta(days=7)  # how long processes wait for one that encodes pictures or draws previews; PyTorch's own 10 minutes are too short


def is_main() -> bool:
    """Whether this process is the one that speaks and writes files; one that is alone is. The launcher says so before anything is loaded."""
    return os.environ.get("RANK", "0") == "0"


def label() -> str:
    """What a message of this process is marked with; empty for the main one."""
    return "" if is_main() else f" (process {os.environ['RANK']})"


def make_accelerator(mixed_precision: str, device: torch.device) -> Any:
    """A new accelerator on the host's device. Its process-wide state is forgotten first, or a second run in one process would keep the
    first one's precision."""
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState):
        state._reset_state()
    if PartialState._shared_state and not torch.distributed.is_initialized():
        PartialState._reset_state()
    return Accelerator(mixed_precision=mixed_precision, cpu=device.type == "cpu", kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])


def average_gradients(accelerator: Any, network: torch.nn.Module) -> None:
    """Every weight's gradient becomes the mean of all processes'; one that has none in any of them keeps none.

    Said of the weights themselves, not of a module's passes as PyTorch's DistributedDataParallel does it: what acts through hooks would go past that, and
    a process whose memory is full could not take its share in smaller parts.
    """
    import torch

    if accelerator.num_processes == 1:
        return
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    has = mean_over_all(accelerator, torch.tensor([float(weight.grad is not None) for weight in weights], device=accelerator.device))
    weights = [weight for weight, share in zip(weights, has.tolist(), strict=True) if share]
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    mean = mean_over_all(accelerator, torch.cat([gradient.flatten() for gradient in gradients]))
    for weight, gradient in zip(weights, mean.split([weight.numel() for weight in weights]), strict=True):
        weight.grad = gradient.view_as(weight)


def make_alike(accelerator: Any, network: torch.nn.Module) -> None:
    """Every process takes over the main one's weights."""
    from accelerate.utils import broadcast

    if accelerator.num_processes > 1:
        for tensor in (*network.parameters(), *network.buffers()):
            broadcast(tensor.data)


def mean_over_all(accelerator: Any, values: torch.Tensor) -> torch.Tensor:
    """The mean of each value over the processes; all of them have to ask."""
    return accelerator.reduce(values, "mean") if accelerator.num_processes > 1 else values


def any_of(accelerator: Any, flag: bool) -> bool:
    """Whether it is true in any of the processes; all of them have to ask."""
    import torch

    return bool(mean_over_all(accelerator, torch.tensor(float(flag), device=accelerator.device)) > 0)


def told_by_main(accelerator: Any, value: Any) -> Any:
    """The main process's value, in all of them."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0] if accelerator.num_processes > 1 else value


def leave() -> None:
    """The processes part at the end of a command."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
