"""Optimizers by name, with their arguments as a user writes them: torch's own, and those of packages where they are installed."""
from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .errors import ConfigError

AUTO_RATE = 0.384  # the automatic learning rate times a network's width: 3e-3 at width 128, 5e-4 at 768
START_RATE = 1e-3  # until training sets that of its first step
UNFIT = {
    "Optimizer": "it is what all of them are made of",
    "LBFGS": "it wants the loss evaluated again and again",
    "SparseAdam": "it wants sparse gradients",
    "Muon": "it takes matrices only, and networks have biases too",
}
OWN_RATE = ("Prodigy", "DAdapt")  # how the names begin of those that find the rate themselves; theirs is a multiple of it, and 1 is usual


@dataclass(frozen=True)
class Package:
    """A package with optimizers: its module, its name for pip, and the optimizers that are known of it without its being there."""

    module: str
    pip: str
    names: tuple[str, ...]

    @property
    def installed(self) -> bool:
        """Whether it can be imported."""
        return importlib.util.find_spec(self.module.partition(".")[0]) is not None


PACKAGES = (
    Package("prodigyopt", "prodigyopt", ("Prodigy",)),
    Package("schedulefree", "schedulefree", ("AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree")),
    Package("dadaptation", "dadaptation", ("DAdaptAdaGrad", "DAdaptAdam", "DAdaptAdan", "DAdaptLion", "DAdaptSGD")),
    Package("bitsandbytes.optim", "bitsandbytes", (
        "Adagrad8bit", "Adam8bit", "AdamW8bit", "AdEMAMix8bit", "LAMB8bit", "LARS8bit", "Lion8bit", "RMSprop8bit", "SGD8bit",
        "PagedAdam", "PagedAdam8bit", "PagedAdamW", "PagedAdamW8bit", "PagedAdEMAMix8bit", "PagedLion", "PagedLion8bit",
    )),
    Package("lion_pytorch", "lion-pytorch", ("Lion",)),
    Package("pytorch_optimizer", "pytorch-optimizer", (
        "Lion", "CAME", "Tiger", "Adan", "ADOPT", "AdaBelief", "AdaFactor", "AdamP", "AdEMAMix", "Aida", "Lamb", "LARS", "LaProp", "MARS",
        "SOAP", "StableAdamW", "Yogi",
    )),
)  # fmt: skip


def optimizer_names() -> list[str]:
    """The classes of `torch.optim` that a network can be trained with."""
    found = [name for name, value in vars(torch.optim).items() if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)]
    return sorted(set(found) - set(UNFIT))


def finds_own_rate(name: str) -> bool:
    """Whether an optimizer of that name works the rate out by itself, so that the automatic rate is 1 for all weights."""
    return name.rpartition(".")[2].startswith(OWN_RATE)


def read_arguments(text: str) -> dict[str, Any]:
    """`betas=(0.9, 0.99), weight_decay=0.01` as keyword arguments. Only literals; raises `ConfigError` for anything else."""
    try:
        call = ast.parse(f"_({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError(text)
        return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ConfigError(f"Optimizer arguments: {text!r} is not of the form betas=(0.9, 0.99), weight_decay=0.01.") from None


def find_optimizer(name: str) -> type[torch.optim.Optimizer]:
    """The class of that name: torch's, else that of a package; `pytorch_optimizer.Lion` says which package.

    Raises `ConfigError` that names the nearest one, or the command that installs the package.
    """
    before, _, last = name.strip().rpartition(".")
    if last in UNFIT:
        raise ConfigError(f"Optimizer: {last} does not fit, since {UNFIT[last]}; choose another one.")
    if not before and last in optimizer_names():
        return getattr(torch.optim, last)
    packages = [package for package in PACKAGES if before in ("", package.module, package.pip, package.module.partition(".")[0])]
    holding = [package for package in packages if last in package.names]
    for package in [*holding, *packages]:  # those that are known to have it come first
        if package.installed and (found := _class_of(package, last)):
            return found
    if missing := [package for package in (holding or packages) if not package.installed and (holding or before)]:
        commands = " or ".join(f"pip install {package.pip}" for package in missing)
        raise ConfigError(f"Optimizer: {last} comes with a package that is not installed here; install it with {commands}.")
    known = [*optimizer_names(), *(name for package in PACKAGES for name in package.names)]
    near = difflib.get_close_matches(last, known, n=1, cutoff=0.3)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(f"Optimizer: there is no {name!r} that fits, neither in torch.optim nor in an installed package of optimizers.{hint}")


def _class_of(package: Package, name: str) -> type[torch.optim.Optimizer] | None:
    try:
        found = getattr(importlib.import_module(package.module), name, None)
    except Exception as error:  # a package that does not fit the machine fails in its own way
        raise ConfigError(f"Optimizer: the package {package.pip} cannot be loaded here ({error}).") from error
    return found if isinstance(found, type) and issubclass(found, torch.optim.Optimizer) else None


def trial_optimizer(name: str, arguments: str, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer over two small weights. Raises `ConfigError` where a network on that device could not be trained with it."""
    return make_optimizer(name, arguments, [{"params": _small_weights(device)}])


def make_optimizer(name: str, arguments: str, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer over parameter groups. Raises `ConfigError` for a name or argument that it does not know.

    On the CPU it is torch's fused one where there is one, which reads every weight once; what a user writes comes first.
    """
    kind, keywords = find_optimizer(name), read_arguments(arguments)
    ours = _is_torchs(kind)
    if ours:
        keywords.setdefault("lr", START_RATE)  # torch 2.1 makes no SGD without one
    try:
        if ours and not keywords.keys() & {"fused", "foreach", "capturable", "differentiable"} and _is_fused_on_cpu(kind, groups):
            keywords["fused"] = True
        optimizer = kind(groups, **keywords)
        _try_step(kind, keywords, groups)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"Optimizer arguments: {name} refuses {arguments!r}: {error}.") from None
    set_training(optimizer, True)
    return optimizer


def _try_step(kind: type[torch.optim.Optimizer], keywords: Mapping[str, Any], groups: Sequence[dict[str, Any]]) -> None:
    """One step on two small weights: some optimizers want more than gradients (a closure, a graph), and say so only then."""
    weights = _small_weights(next((parameter.device for group in groups for parameter in group["params"]), torch.device("cpu")))
    optimizer = kind(weights, **keywords)
    set_training(optimizer, True)
    for weight in weights:
        weight.grad = torch.full_like(weight, 0.1)
    try:
        optimizer.step()
    except Exception as error:  # a package's own kinds of errors
        raise ConfigError(f"Optimizer: {kind.__name__} does not fit ({error or type(error).__name__}); choose another one.") from error


def _small_weights(device: torch.device) -> list[torch.nn.Parameter]:
    """A matrix and a bias."""
    return [torch.nn.Parameter(torch.ones(shape, device=device)) for shape in ((8, 4), (8,))]


def set_training(optimizer: torch.optim.Optimizer, training: bool) -> None:
    """Schedule-free optimizers (Defazio et al. 2024) keep one set of weights to train and another one to use; others have no such modes."""
    if switch := getattr(optimizer, "train" if training else "eval", None):
        switch()


def averages_weights(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it is schedule-free: see `evaluating`."""
    return hasattr(optimizer, "train") and hasattr(optimizer, "eval")


@contextmanager
def evaluating(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within it the weights are those to use: a schedule-free optimizer's average. Afterwards they are bit for bit as before, which switching
    to and fro does not give."""
    if not averages_weights(optimizer):
        yield
        return
    weights = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = [weight.detach().clone() for weight in weights]
    set_training(optimizer, False)
    try:
        yield
    finally:
        set_training(optimizer, True)
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)


def restore(optimizer: torch.optim.Optimizer, state: dict[str, Any], arguments: str) -> None:
    """Takes a state over; what is asked now counts, not what the state was made with. Packages keep part of their state among the groups'
    values, so of theirs only what a user writes is changed.

    Raises `ConfigError` for another optimizer's state.
    """
    asked = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"The run was made with another optimizer, whose state does not fit ({error}); choose that one again.") from None
    changed = None if _is_torchs(type(optimizer)) else {"rate_scale", *read_arguments(arguments)}
    for group, values in zip(optimizer.param_groups, asked, strict=True):
        group.update({key: value for key, value in values.items() if changed is None or key in changed})


def _is_torchs(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "torch"


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
