"""Averages and chains against what they are defined to be."""
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hypernetworks.errors import ConfigError
from hypernetworks.merging import Part, average, chain, tags
from hypernetworks.prompt import extract
from hypernetworks.residual import ResidualHypernetwork, ResidualStructure

WIDTH = 8
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
X = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))

LINEAR = (
    ResidualStructure((1, 1)),
    ResidualStructure((1, 0.25, 1)),
    ResidualStructure((1, 2, 1), dropout_structure=(0, 0.5, 0.1)),
    ResidualStructure((1, 2, 2, 1)),
    ResidualStructure((1, 2, 1), skip_connection=True),
    ResidualStructure((1, 0.5, 1), skip_connection=True, upsample_linear=True),
)
BENT = (
    ResidualStructure((1, 2, 1), "relu"), ResidualStructure((1, 2, 1), layer_norm=True), ResidualStructure((1, 2, 1), "swish", activate_output=True),
)  # fmt: skip


def part(name="ink", weight=1.0, structure=LINEAR[1], seed=1, widths=None, **metadata):
    """A part with weights and biases of everyday size."""
    network = ResidualHypernetwork(widths or {WIDTH: WIDTH}, structure, "KaimingNormal", seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            parameter.data.normal_(0, 0.5, generator=generator)
    network.metadata.update(metadata)
    return Part(name, network.eval(), weight, f"hash of {name}")


def tagged(parts, place, x=X, key=WIDTH):
    """What tags in this order do to x: x + m f(x), one after the other."""
    for one in parts:
        if key in one.network:
            x = x + one.weight * one.network.pair(key)[place](x)
    return x


def acts(network, place, x=X, key=WIDTH):
    return x + network.pair(key)[place](x)


# --- average


@given(st.lists(st.tuples(st.floats(-3, 3), st.integers(0, 9)), min_size=2, max_size=4), st.sampled_from(LINEAR + BENT))
@settings(max_examples=40, deadline=None)
def test_every_weight_is_the_weighted_mean_divided_by_the_sum_of_the_weights(given_parts, structure):
    total = sum(weight for weight, _ in given_parts)
    parts = [part(weight=weight, seed=seed, structure=structure) for weight, seed in given_parts]
    if total <= 1e-3:
        return
    merged = average(parts).state_dict()
    states = [one.network.state_dict() for one in parts]
    for name, value in merged.items():
        expected = sum(one.weight * state[name].double() for one, state in zip(parts, states, strict=True)) / total
        assert torch.allclose(value.double(), expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


def test_only_the_weights_proportions_count():
    one, two = [average([part(weight=w, seed=1), part(weight=3 * w, seed=2)]).state_dict() for w in (0.25, 7)]
    assert all(torch.allclose(one[name], two[name], rtol=1e-6, atol=1e-7) for name in one)


def test_an_average_with_itself_is_itself():
    same = part()
    assert all(map(torch.equal, average([same, same]).parameters(), same.network.parameters()))


def test_with_one_layer_the_average_of_the_weights_is_the_average_of_the_effects():
    parts = [part(weight=3, seed=1, structure=LINEAR[0]), part(weight=1, seed=2, structure=LINEAR[0])]
    effects = [one.network.pair(WIDTH)[0](X) for one in parts]
    assert torch.allclose(average(parts).pair(WIDTH)[0](X), 0.75 * effects[0] + 0.25 * effects[1], atol=1e-5)


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ([part()], "at least two"),
        ([part(weight=1), part(weight=-1)], "add up to more than 0"),
        ([part(weight=math.nan), part()], "cannot be nan"),
        ([part("ink"), part("fog", structure=LINEAR[2])], "ink and fog cannot be averaged.*built differently.*one after the other instead"),
        ([part("ink"), part("fog", widths={4: 4})], "act on different widths"),
        ([part("ink"), part("fog", widths={LAYER: WIDTH})], "one has a pair per attention layer.*tags of all.*: <hypernet:ink> <hypernet:fog>"),
    ],
)
def test_what_has_no_average_is_told_in_a_sentence(parts, sentence):
    with pytest.raises(ConfigError, match=sentence):
        average(parts)


def test_the_parts_are_left_as_they_are():
    one, two = part(seed=1), part(seed=2)
    before = [weight.clone() for weight in one.network.parameters()]
    average([one, two])
    chain([one, two])
    assert all(map(torch.equal, before, one.network.parameters()))


# --- chain


@given(st.lists(st.tuples(st.floats(-2, 2), st.integers(0, 9), st.sampled_from(LINEAR)), min_size=2, max_size=4))
@settings(max_examples=40, deadline=None)
def test_a_chain_does_what_the_tags_do_one_after_the_other(given_parts):
    parts = [part(weight=weight, seed=seed, structure=structure) for weight, seed, structure in given_parts]
    merged = chain(parts)
    assert merged.structure == ResidualStructure((1, 1))
    for place in range(2):
        expected = tagged(parts, place)
        assert torch.allclose(acts(merged, place), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_two_chained_matrices_are_the_product_of_the_formula():
    parts = [part(weight=0.5, seed=1, structure=LINEAR[0]), part(weight=-1.5, seed=2, structure=LINEAR[0])]
    (w1, b1), (w2, b2) = [[value.double() for value in one.network.pair(WIDTH)[0].state_dict().values()] for one in parts]
    identity = torch.eye(WIDTH, dtype=torch.float64)
    found = chain(parts).pair(WIDTH)[0].state_dict()
    wanted = (identity - 1.5 * w2) @ (identity + 0.5 * w1) - identity
    assert torch.allclose(found["linear.0.weight"].double(), wanted, atol=1e-6)
    assert torch.allclose(found["linear.0.bias"].double(), (identity - 1.5 * w2) @ (0.5 * b1) - 1.5 * b2, atol=1e-6)


def test_the_order_of_a_chain_matters():
    one, two = part(seed=1), part(seed=2)
    assert not torch.allclose(acts(chain([one, two]), 0), acts(chain([two, one]), 0), atol=1e-3)


def test_a_pair_that_one_part_lacks_is_the_other_parts():
    parts = [part("ink", 0.5, widths={8: 8, 4: 4}), part("fog", 2.0, widths={8: 8, 6: 6}, seed=2)]
    merged = chain(parts)
    assert set(merged.keys) == {8, 4, 6}
    for key in merged.keys:
        x = torch.randn(3, key, generator=torch.Generator().manual_seed(1))
        assert torch.allclose(acts(merged, 1, x, key), tagged(parts, 1, x, key), rtol=1e-4, atol=1e-5)


def test_networks_per_layer_are_chained_layer_by_layer():
    merged = chain([part(widths={LAYER: 8}), part(widths={LAYER: 8, LAYER.replace("0", "1"): 4})])
    assert merged.per_layer and merged.widths == {LAYER: 8, LAYER.replace("0", "1"): 4}


@pytest.mark.parametrize("structure", BENT)
def test_what_is_not_linear_is_refused_with_the_tags_that_do_it(structure):
    parts = [part("ink", 0.7), part("fog", 0.3, structure)]
    with pytest.raises(ConfigError, match="A chain with fog cannot be one file") as refused:
        chain(parts)
    assert [(active.name, active.strength) for active in extract(str(refused.value))[1]] == [("ink", 0.7), ("fog", 0.3)]


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (part("fog", widths={LAYER: 8}), "a pair per attention layer"),
        (part("fog", uncond="no"), "only one of them leaves the negative prompt's side alone"),
    ],
)
def test_parts_that_no_one_file_can_hold_are_refused(other, sentence):
    with pytest.raises(ConfigError, match=sentence):
        chain([part(), other])


def test_layers_of_other_models_do_not_chain():
    with pytest.raises(ConfigError, match="made for different models"):
        chain([part(widths={LAYER: 8}), part(widths={LAYER: 4})])


def test_weights_beyond_all_numbers_are_refused():
    with pytest.raises(ConfigError, match="not numbers any more"):
        chain([part(weight=1e300), part(weight=1e300)])


# --- what the file says


def test_a_merged_network_says_what_it_was_made_of():
    shared = {"base_model": "small", "vae": "a"}
    merged = average([part("ink", 3, **shared), part("fog", 1, seed=2, **{**shared, "vae": "b", "settings": "{}"})])
    made_of = [{"name": "ink", "hash": "hash of ink", "weight": 3}, {"name": "fog", "hash": "hash of fog", "weight": 1}]
    assert json.loads(merged.metadata["merged_from"]) == made_of
    assert merged.metadata["merged_by"] == "average" and merged.metadata["base_model"] == "small"
    assert "vae" not in merged.metadata and "settings" not in merged.metadata and not merged.training


@pytest.mark.parametrize(("said", "kept"), [(["yes", "yes"], "yes"), (["no", "yes"], "no"), (["no", "no"], "no")])
def test_an_average_leaves_the_negative_side_alone_if_a_part_does(said, kept):
    assert average([part(uncond=one, seed=seed) for seed, one in enumerate(said)]).metadata["uncond"] == kept


def test_tags_of_parts_read_back():
    assert extract(tags([part("ink", 0.5), part("fog", -1)]))[1][1].strength == -1
