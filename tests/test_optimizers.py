"""Optimizers by name, arguments as text."""
import importlib.machinery
import sys
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hypernetworks.errors import ConfigError
from hypernetworks.optimizers import (
    PACKAGES,
    evaluating,
    find_optimizer,
    finds_own_rate,
    make_optimizer,
    optimizer_names,
    read_arguments,
    restore,
)


@pytest.mark.parametrize("name", optimizer_names())
def test_every_listed_optimizer_takes_a_step(name):
    layer = torch.nn.Linear(4, 4)
    before = [weight.detach().clone() for weight in layer.parameters()]
    optimizer = make_optimizer(name, "", [{"params": list(layer.parameters()), "rate_scale": 1.0}])
    layer(torch.ones(1, 4)).pow(2).sum().backward()
    optimizer.step()
    for weight, value in zip(layer.parameters(), before, strict=True):
        assert torch.isfinite(weight).all() and not torch.equal(weight, value)


def test_arguments_reach_the_optimizer():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer("AdamW", "betas=(0.8, 0.9), weight_decay=0.5", [{"params": [weight]}])
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9) and optimizer.param_groups[0]["weight_decay"] == 0.5


def test_on_the_cpu_the_optimizer_is_fused_and_does_what_the_plain_one_does():
    weights = [torch.nn.Parameter(torch.randn(8, 4, generator=torch.Generator().manual_seed(0))) for _ in range(2)]
    ours = make_optimizer("AdamW", "weight_decay=0.1", [{"params": [weights[0]]}])
    plain = torch.optim.AdamW([weights[1]], weight_decay=0.1)
    for step in range(5):
        for weight, optimizer in zip(weights, (ours, plain), strict=True):
            weight.grad = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            optimizer.step()
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 4):  # the CPU's fused AdamW came with 2.4
        assert ours.param_groups[0]["fused"] is True


def test_what_is_asked_for_comes_before_fusing():
    optimizer = make_optimizer("AdamW", "foreach=True", [{"params": [torch.nn.Parameter(torch.ones(2))]}])
    assert optimizer.param_groups[0]["foreach"] and not optimizer.param_groups[0]["fused"]


@pytest.mark.parametrize("name, arguments, named", [
    ("AdamWW", "", "AdamW?"), ("LBFGS", "", "LBFGS"), ("Muon", "", "biases"), ("pytorch_optimizer.Muon", "", "biases"),
    ("AdamW", "beta=3", "beta"), ("AdamW", "betas=(2, 0.9)", "2"), ("AdamW", "fused=True, foreach=True", "together"),
    ("AdamW", "weight_decay=__import__('os')", "weight_decay"), ("AdamW", "0.9", "0.9"), ("AdamW", "**{}", "form"),
])
def test_what_does_not_fit_is_named(name, arguments, named):
    with pytest.raises(ConfigError) as refusal:
        make_optimizer(name, arguments, [{"params": [torch.nn.Parameter(torch.ones(2))]}])
    assert named in str(refusal.value)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text):
    try:
        assert isinstance(read_arguments(text), dict)
    except ConfigError:
        pass


# --- of packages ----------------------------------------------------------------------------------------------------------------


class Averaging(torch.optim.SGD):
    """A stand-in with two modes, as schedule-free optimizers have them: switching to and fro does not give the same bits."""

    modes: list = []

    def train(self):
        self.modes.append("train")
        self._scale(49.0)

    def eval(self):
        self.modes.append("eval")
        self._scale(1 / 49.0)

    def _scale(self, factor):
        with torch.no_grad():
            for group in self.param_groups:
                for weight in group["params"]:
                    if self.state[weight]:  # as those do: nothing before the first step
                        weight.mul_(factor)


class Wanting(torch.optim.SGD):
    """A stand-in that wants more than gradients."""

    def step(self, closure=None):
        if closure is None:
            raise RuntimeError("a closure is needed")


@pytest.fixture
def package(monkeypatch):
    """Makes a package of optimizers seem installed, or missing."""

    def pretend(name, **classes):
        if classes:
            module = types.ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            vars(module).update(classes)
            for kind in classes.values():
                if isinstance(kind, type):
                    monkeypatch.setattr(kind, "__module__", name)
            monkeypatch.setitem(sys.modules, name, module)
        else:
            monkeypatch.setitem(sys.modules, name, None)

    for known in PACKAGES:
        pretend(known.module.partition(".")[0])
    return pretend


def groups(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [{"params": [torch.nn.Parameter(torch.randn(shape, generator=generator))], "rate_scale": 1.0} for shape in shapes or ((4, 4), (4,))]


@pytest.mark.parametrize("name, command", [
    ("Prodigy", "pip install prodigyopt"), ("AdamWScheduleFree", "pip install schedulefree"), ("DAdaptAdam", "pip install dadaptation"),
    ("AdamW8bit", "pip install bitsandbytes"), ("Lion", "pip install lion-pytorch or pip install pytorch-optimizer"),
    ("CAME", "pip install pytorch-optimizer"), ("pytorch_optimizer.Sophia", "pip install pytorch-optimizer"), ("bitsandbytes.Lion8bit", "pip install bitsandbytes"),
])
def test_what_is_not_installed_is_named_with_the_command_that_installs_it(package, name, command):
    with pytest.raises(ConfigError) as refusal:
        make_optimizer(name, "", groups())
    assert str(refusal.value).endswith(f"install it with {command}.")


def test_names_are_looked_for_in_torch_first_and_in_every_installed_package(package):
    package("pytorch_optimizer", AdamW=Averaging, Lion=Averaging, Unheard=Averaging)
    assert find_optimizer("AdamW") is torch.optim.AdamW
    assert find_optimizer("Lion") is find_optimizer("pytorch_optimizer.AdamW") is find_optimizer("Unheard") is Averaging
    with pytest.raises(ConfigError, match="nor in an installed package"):
        find_optimizer("Nobody")


@pytest.mark.parametrize("name", ["os.system", "torch.optim.AdamW.step", "pytorch_optimizer.os", "pytorch_optimizer.function", ".", "pytorch_optimizer."])
def test_nothing_but_optimizers_of_known_packages_is_loaded(package, name):
    import os

    package("pytorch_optimizer", os=os, function=print)
    with pytest.raises(ConfigError, match="Optimizer"):
        find_optimizer(name)


def test_one_that_wants_more_than_gradients_is_refused_before_the_run(package):
    package("pytorch_optimizer", Wanting=Wanting)
    with pytest.raises(ConfigError, match="Wanting does not fit .a closure is needed"):
        make_optimizer("Wanting", "lr=0.1", groups())


def test_weights_to_use_are_shown_for_a_while_and_those_to_train_come_back_bit_for_bit(package):
    package("schedulefree", AdamWScheduleFree=Averaging)
    optimizer = make_optimizer("AdamWScheduleFree", "lr=0.1, momentum=0.9", groups())
    (weight,) = optimizer.param_groups[0]["params"]
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    before = weight.detach().clone()
    with evaluating(optimizer):
        assert torch.allclose(weight, before / 49)
    assert torch.equal(weight, before) and not torch.equal(before / 49 * 49, before)
    assert optimizer.modes[-2:] == ["eval", "train"]


def test_optimizers_without_modes_are_left_alone():
    optimizer = make_optimizer("AdamW", "", groups())
    (weight,) = optimizer.param_groups[0]["params"]
    before = weight._version
    with evaluating(optimizer):
        pass
    assert weight._version == before


def test_what_is_asked_now_counts_after_a_state_was_taken_over(package):
    old = make_optimizer("AdamW", "weight_decay=0.5", groups())
    new = make_optimizer("AdamW", "betas=(0.8, 0.9)", groups())
    restore(new, old.state_dict(), "betas=(0.8, 0.9)")
    assert new.param_groups[0]["betas"] == (0.8, 0.9) and new.param_groups[0]["weight_decay"] == 0.01


def test_what_a_package_keeps_among_its_groups_is_taken_over(package):
    package("prodigyopt", Prodigy=Averaging)
    old, new = (make_optimizer("Prodigy", f"lr=1.0, momentum={momentum}", groups()) for momentum in (0.5, 0.7))
    old.param_groups[0]["d"] = 0.25  # found by the optimizer, not asked for
    new.param_groups[0]["rate_scale"] = 2.0
    restore(new, old.state_dict(), "momentum=0.7")
    assert new.param_groups[0]["d"] == 0.25 and new.param_groups[0]["momentum"] == 0.7 and new.param_groups[0]["rate_scale"] == 2.0


def test_optimizers_that_find_their_rate_are_known():
    assert all(map(finds_own_rate, ("Prodigy", "DAdaptLion", "pytorch_optimizer.DAdaptAdam", "prodigyopt.Prodigy")))
    assert not any(map(finds_own_rate, ("AdamW", "AdamWScheduleFree", "Lion")))


INSTALLED = [(package, name) for package in PACKAGES for name in package.names if package.installed]


@pytest.mark.skipif(not INSTALLED, reason="no package of optimizers is installed")
@pytest.mark.parametrize("package, name", INSTALLED, ids=[f"{package.pip} {name}" for package, name in INSTALLED])
def test_the_packages_optimizers_learn_and_go_on_from_their_states_bit_for_bit(package, name, tmp_path):
    if package.pip == "bitsandbytes" and not torch.cuda.is_available():
        pytest.skip("needs a graphics card")

    def run(optimizer, weights, steps, seed):
        for step in range(steps):
            for weight in weights:
                target = torch.randn(weight.shape, generator=torch.Generator().manual_seed(9))
                noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed + step))
                weight.grad = weight.detach() - target + 0.1 * noise
            optimizer.step()

    def made():
        about = groups((16, 8), (8,))
        optimizer = make_optimizer(f"{package.module.partition('.')[0]}.{name}", "", about)
        rate = 1.0 if finds_own_rate(name) else 0.01
        for group in optimizer.param_groups:
            group["lr"] = rate
        return optimizer, [weight for group in about for weight in group["params"]]

    optimizer, weights = made()
    start = [weight.detach().clone() for weight in weights]
    run(optimizer, weights, 5, 0)
    torch.save({"optimizer": optimizer.state_dict(), "weights": [weight.detach().clone() for weight in weights]}, tmp_path / "state.pt")
    with evaluating(optimizer):
        pass
    run(optimizer, weights, 5, 5)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other, again = made()
    with torch.no_grad():
        for weight, value in zip(again, state["weights"], strict=True):
            weight.copy_(value)
    restore(other, state["optimizer"], "")
    run(other, again, 5, 5)
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
    target = torch.randn((16, 8), generator=torch.Generator().manual_seed(9))
    assert float((weights[0].detach() - target).norm()) < float((start[0] - target).norm())
