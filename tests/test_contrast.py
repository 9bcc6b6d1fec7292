"""The encoder learns to tell groups apart before a generator is trained."""
import math

import pytest
import torch

from hypernetworks.conditions import Condition, HypernetworkEncoder
from hypernetworks.contrast import TEMPERATURE, contrastive_loss, teach

GROUPS, NOISE = 12, 1.0


def encoder():
    made = HypernetworkEncoder(32, 48, ("text", "image"), 8, "latents", 4, 0).to_empty(device="cpu")
    made.initialize(torch.Generator().manual_seed(0))
    return made


def pairs(step):
    """Of each group two pictures of noise around a pattern of its own."""
    patterns = torch.randn(GROUPS, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(2, GROUPS, 4, 8, 8, generator=torch.Generator().manual_seed(100 + step))
    return patterns + NOISE * noise[0], patterns + NOISE * noise[1]


def found(made, step):
    """The share of pictures whose companion is the nearest among the other group's."""
    with torch.no_grad():
        first, second = (torch.nn.functional.normalize(made(Condition(image=side)), dim=-1) for side in pairs(step))
    return ((first @ second.T).argmax(1) == torch.arange(GROUPS)).float().mean()


@pytest.mark.parametrize("count", [2, 5, 2000])
def test_the_loss_is_the_cross_entropy_of_finding_the_companion(count):
    right = torch.eye(count)
    expected = -math.log(math.exp(1 / TEMPERATURE) / (math.exp(1 / TEMPERATURE) + count - 1))
    assert float(contrastive_loss(right, 3 * right)) == pytest.approx(expected, rel=1e-3)  # lengths do not count
    same = torch.ones(count, 16)
    assert float(contrastive_loss(same, same)) == pytest.approx(math.log(count), rel=1e-5)


def test_the_loss_counts_both_ways():
    first, second = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(2))
    normal = torch.nn.functional.normalize
    similarity = normal(first, dim=-1) @ normal(second, dim=-1).T / TEMPERATURE
    expected = -(similarity.log_softmax(0).diag() + similarity.log_softmax(1).diag()).mean() / 2
    torch.testing.assert_close(contrastive_loss(first, second), expected)


def test_pictures_of_a_group_that_were_never_shown_are_told_apart():
    made = encoder()
    before = found(made, 1000)
    losses = list(teach(made, pairs, 60))
    assert len(losses) == 60 and sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert before < 0.8 < 0.95 <= found(made, 1000)


def test_what_is_not_for_pictures_stays_as_it_is():
    made = encoder()
    kept = {name: value.clone() for name, value in made.state_dict().items()}
    list(teach(made, pairs, 2))
    changed = {name for name, value in made.state_dict().items() if not value.equal(kept[name])}
    assert {name.split(".")[0] for name in changed} == {"adapters", "adapter_norms", "mlp", "norm"}
    assert not [name for name in changed if ".text" in name or "null" in name]
