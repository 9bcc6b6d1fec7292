"""Optimizers by name, arguments as text."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hypernetworks.errors import ConfigError
from hypernetworks.optimizers import make_optimizer, optimizer_names, read_arguments


@pytest.mark.parametrize("name", optimizer_names())
def test_every_listed_optimizer_takes_a_step(name):
    weight = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = make_optimizer(name, "", [{"params": [weight], "rate_scale": 1.0}])
    weight.pow(2).sum().backward()
    optimizer.step()
    assert torch.isfinite(weight).all() and not torch.equal(weight, torch.ones(4, 4))


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
    ("AdamWW", "", "AdamW?"), ("LBFGS", "", "LBFGS"), ("AdamW", "beta=3", "beta"), ("AdamW", "betas=(2, 0.9)", "2"),
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
