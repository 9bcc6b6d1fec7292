"""Optimizers by name, with their arguments as a user writes them."""
from __future__ import annotations

import ast
import difflib
from collections.abc import Sequence
from typing import Any

import torch

from .errors import ConfigError

AUTO_RATE = 0.384  # the automatic learning rate times a network's width: 3e-3 at width 128, 5e-4 at 768
UNFIT = ("Optimizer", "LBFGS", "SparseAdam")  # LBFGS wants the loss evaluated again and again, SparseAdam sparse gradients


def optimizer_names() -> list[str]:
    """The classes of `torch.optim` that a network can be trained with."""
    found = [name for name, value in vars(torch.optim).items() if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)]
    return sorted(set(found) - set(UNFIT))


def read_arguments(text: str) -> dict[str, Any]:
    """`betas=(0.9, 0.99), weight_decay=0.01` as keyword arguments. Only literals; raises `ConfigError` for anything else."""
    try:
        call = ast.parse(f"_({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError(text)
        return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ConfigError(f"Optimizer arguments: {text!r} is not of the form betas=(0.9, 0.99), weight_decay=0.01.") from None


def make_optimizer(name: str, arguments: str, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """An optimizer of `torch.optim` over parameter groups. Raises `ConfigError` for a name or argument that it does not know.

    On the CPU it is the fused one where there is one, which reads every weight once; what a user writes comes first.
    """
    if name not in optimizer_names():
        near = difflib.get_close_matches(name, optimizer_names(), n=1, cutoff=0.3)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"Optimizer: torch.optim has no {name!r} that fits.{hint}")
    keywords, kind = read_arguments(arguments), getattr(torch.optim, name)
    try:
        if not keywords.keys() & {"fused", "foreach", "capturable", "differentiable"} and _is_fused_on_cpu(kind, groups):
            keywords["fused"] = True
        return kind(groups, **keywords)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"Optimizer arguments: {name} refuses {arguments!r}: {error}.") from None


def _is_fused_on_cpu(kind: type[torch.optim.Optimizer], groups: Sequence[dict[str, Any]]) -> bool:
    """Whether all weights are on the CPU and torch has the optimizer fused there: of AdamW's kind from 2.4 on, and not all of them."""
    if any(parameter.device.type != "cpu" for group in groups for parameter in group["params"]):
        return False
    try:
        kind([torch.nn.Parameter(torch.zeros(1))], fused=True)
        return True
    except (TypeError, ValueError, RuntimeError):  # no such argument, or not for the CPU
        return False


def parameter_groups(network: Any, auto: bool) -> list[dict[str, Any]]:
    """One group per pair of a residual hypernetwork, each with the `rate_scale` that the schedule's rate is multiplied by.

    With the automatic rate that is `AUTO_RATE` over the pair's width, since the same step of every weight changes the output of a wider
    layer more; else 1.
    """
    return [
        {
            "params": [parameter for f in network.pair(key) for parameter in f.parameters()],
            "rate_scale": AUTO_RATE / network.widths[key] if auto else 1.0,
        }
        for key in network.keys
    ]
