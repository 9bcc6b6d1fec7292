"""f against its formula, initial weights, and what a structure refuses."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from hypernetworks.errors import ConfigError
from hypernetworks.residual import ACTIVATIONS, INITIALIZATIONS, ResidualHypernetwork, ResidualStructure, flattened

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"


def single(structure: ResidualStructure, width: int = 12, initialization: str = "XavierNormal", seed: int = 1):
    return ResidualHypernetwork({width: width}, structure, initialization, seed).eval().pair(width)[0]


def shuffled(f, seed: int = 0):
    """The same network with every weight disturbed, so that no part of the formula can hide behind a zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in f.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return f


def by_formula(f, x, structure):
    """Linear, activation but not after the last, LayerNorm; written without modules."""
    state = list(f.state_dict().values())
    layers = len(structure.layer_structure) - 1
    for layer in range(layers):
        x = x @ state.pop(0).T + state.pop(0)
        if structure.activate_output or layer < layers - 1:
            x = {"linear": lambda x: x, "relu": F.relu, "swish": F.hardswish, "tanh": torch.tanh}[structure.activation](x)
        if structure.layer_norm:
            mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
            x = (x - mean) / (variance + 1e-5).sqrt() * state.pop(0) + state.pop(0)
    return x


@pytest.mark.parametrize("activation", ["linear", "relu", "swish", "tanh"])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("activate_output", [False, True])
def test_f_is_linear_activation_norm_per_layer(activation, layer_norm, activate_output):
    structure = ResidualStructure((1, 1.5, 0.5, 1), activation, layer_norm, activate_output=activate_output)
    f = shuffled(single(structure))
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(f(x), by_formula(f, x, structure))


def test_widths_are_rounded_down():
    assert ResidualStructure((1, 1.3, 2, 1)).widths(9) == (9, 11, 18, 9)


@pytest.mark.parametrize("upsample_linear", [False, True])
def test_skip_connections_return_only_what_they_add(upsample_linear):
    structure = ResidualStructure((1, 1.5, 1), "elu", skip_connection=True, upsample_linear=upsample_linear)
    f = shuffled(single(structure))
    x = torch.randn(2, 5, 12)
    carried = x
    for number in (0, 1):
        state = {
            name.removeprefix(f"linear.{number}."): w
            for name, w in f.state_dict().items()
            if name.startswith(f"linear.{number}.")
        }
        branch = F.elu(carried @ state["linear.0.weight"].T + state["linear.0.bias"])
        if upsample_linear:
            short_cut = carried @ state["upsample_layer.weight"].T
        else:
            short_cut = F.interpolate(carried, size=branch.shape[-1], mode="nearest-exact")
        carried = short_cut + branch
    torch.testing.assert_close(f(x), carried - x)


def test_dropout_acts_in_training_at_its_place_and_with_its_share_only():
    f = single(ResidualStructure((1, 8, 1), dropout_structure=(0, 0.25, 0)), width=500)
    kept = []
    f.linear[1].register_forward_hook(lambda module, inputs, output: kept.append((output != 0).float().mean().item()))
    x = torch.randn(1, 4, 500)
    assert not torch.equal(f.train()(x), f(x))
    assert all(abs(share - 0.75) < 0.02 for share in kept)
    assert torch.equal(f.eval()(x), f(x))


@pytest.mark.parametrize(
    "dropout, modules",
    [
        ((0, 0, 0), ["Linear", "Hardswish", "Linear"]),
        ((0, 0.1, 0), ["Linear", "Hardswish", "Dropout", "Linear"]),
        ((0, 0, 0.1), ["Linear", "Hardswish", "Linear", "Dropout"]),
    ],
)
def test_dropout_stands_after_the_layer_it_is_given_for(dropout, modules):
    f = single(ResidualStructure((1, 2, 1), "swish", dropout_structure=dropout))
    assert [type(module).__name__ for module in f.linear] == modules


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_gives_an_output_of_the_inputs_shape_and_a_gradient(activation):
    f = single(ResidualStructure((1, 2, 1), activation))
    x = torch.randn(2, 5, 12, requires_grad=True)
    f(x).pow(2).sum().backward()
    assert f(x).shape == x.shape
    assert torch.isfinite(x.grad).all()


def test_softmax_is_over_the_dimension_that_torch_picks_for_a_nameless_one():
    f = single(ResidualStructure((1, 2, 1), "softmax"))
    seen = []
    f.linear[1].register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    f(torch.randn(3, 5, 12))
    ((before, after),) = seen
    with pytest.warns(UserWarning, match="Implicit dimension"):
        torch.testing.assert_close(after, torch.nn.Softmax()(before))


@pytest.mark.parametrize(
    "about, words",
    [
        ({"activation": "multiheadattention"}, "attention layer"),
        ({"activation": "threshold"}, "arguments"),
        ({"activation": "glu"}, "halves"),
        ({"activation": "swoosh"}, "no activation 'swoosh'"),
        ({"layer_structure": (1,)}, "begins and ends with 1"),
        ({"layer_structure": (1, 2)}, "begins and ends with 1"),
        ({"layer_structure": (2, 1)}, "begins and ends with 1"),
        ({"layer_structure": (1, 0, 1)}, "above 0"),
        ({"layer_structure": (1, math.nan, 1)}, "above 0"),
        ({"layer_structure": (1, math.inf, 1)}, "up to"),
        ({"layer_structure": (1, "two", 1)}, "list of numbers"),
        ({"layer_structure": 3}, "list of numbers"),
        ({"dropout_structure": (0, 0.1)}, "one number for each"),
        ({"dropout_structure": (0, 1.0, 0)}, "below 1"),
        ({"dropout_structure": (0, -0.1, 0)}, "below 1"),
        ({"upsample_linear": True}, "skip connections"),
    ],
)
def test_a_structure_that_cannot_be_built_is_refused_with_a_sentence(about, words):
    with pytest.raises(ConfigError, match=words):
        ResidualStructure(**about)


@pytest.mark.parametrize("widths", [{}, {0: 0}, {768: 640}, {768: 768, LAYER: 768}, {LAYER: -1}, {2**21: 2**21}])
def test_widths_that_make_no_network_are_refused(widths):
    with pytest.raises(ConfigError):
        ResidualHypernetwork(widths)


def test_a_layer_that_rounds_to_nothing_is_refused():
    with pytest.raises(ConfigError, match="width 8 empty"):
        ResidualHypernetwork({8: 8}, ResidualStructure((1, 0.1, 1)))


def test_equal_structures_compare_equal_however_they_were_written():
    assert ResidualStructure((1, 2, 1), "Swish", dropout_structure=[0, 0, 0]) == ResidualStructure([1.0, 2.0, 1.0], "swish")


# initial weights


@pytest.mark.parametrize(
    "structure",
    [
        ResidualStructure(),
        ResidualStructure((1, 2, 2, 1), "relu"),
        ResidualStructure((1, 2, 1), "swish", activate_output=True),
        ResidualStructure((1, 2, 1), "swish", layer_norm=True),
        ResidualStructure((1, 2, 1), "relu", layer_norm=True, activate_output=True),
        ResidualStructure((1, 0.5, 1), "prelu", dropout_structure=(0, 0.1, 0.1)),
        ResidualStructure((1, 2, 1), "swish", skip_connection=True),
        ResidualStructure((1, 1.5, 1.5, 1), "tanh", layer_norm=True, skip_connection=True),
        ResidualStructure((1, 2, 1), "linear", skip_connection=True, upsample_linear=True),
    ],
    ids=str,
)
def test_a_network_that_begins_at_zero_changes_nothing_and_learns_with_every_weight(structure):
    torch.manual_seed(0)
    network = ResidualHypernetwork({12: 12}, structure).eval()
    f, _ = network.pair(12)
    x, target = torch.randn(64, 4, 12), torch.randn(64, 4, 12)
    assert torch.count_nonzero(f(x)) == 0
    optimizer = torch.optim.AdamW(f.parameters(), lr=1e-2)
    losses = []
    for step in range(3):
        loss = (f(x) - target).pow(2).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if step < 2:
            optimizer.step()
    gradients = {name: weight.grad.norm().item() for name, weight in f.named_parameters()}
    assert all(math.isfinite(norm) and norm > 1e-6 for norm in gradients.values()), gradients
    assert losses[2] < losses[1] < losses[0]


def test_a_layer_norm_at_the_end_does_not_blow_up_the_first_update():
    torch.manual_seed(0)
    f = ResidualHypernetwork({64: 64}, ResidualStructure((1, 2, 1), "swish", layer_norm=True)).pair(64)[0]
    x, target = torch.randn(8, 8, 64), torch.randn(8, 8, 64)
    optimizer = torch.optim.AdamW(f.parameters(), lr=1e-4)
    (f(x) - target).pow(2).mean().backward()
    optimizer.step()
    assert 0 < f(x).norm() < 0.001 * x.norm()


def test_zero_keeps_variance_in_the_first_layers_gains_at_one_and_biases_at_zero():
    f = single(ResidualStructure((1, 2, 2, 1), "linear", layer_norm=True), width=200, initialization="zero")
    assert f.linear[0].weight.std().item() == pytest.approx(200**-0.5, rel=0.02)
    assert f.linear[2].weight.std().item() == pytest.approx(400**-0.5, rel=0.02)
    assert torch.equal(f.linear[1].weight, torch.ones(400)) and torch.equal(f.linear[3].weight, torch.ones(400))
    assert all(not weight.any() for name, weight in f.named_parameters() if name.endswith("bias"))


def test_without_layer_norm_zero_is_the_last_linear_and_it_alone():
    f = single(ResidualStructure((1, 2, 1), "swish"), initialization="zero")
    assert not f.linear[2].weight.any() and f.linear[0].weight.all()


@pytest.mark.parametrize(
    "structure",
    [
        ResidualStructure((1, 2, 1), "relu", activate_output=True),
        ResidualStructure((1, 2, 1), "sigmoid", activate_output=True),
        ResidualStructure((1, 2, 1), "relu", skip_connection=True),
        ResidualStructure((1, 0.5, 1), "swish", skip_connection=True),
        ResidualStructure((1, 0.5, 1), "swish", skip_connection=True, upsample_linear=True),
    ],
    ids=str,
)
def test_where_no_zero_start_is_possible_the_reason_is_said(structure):
    with pytest.raises(ConfigError, match="Zero initial weights are not possible"):
        ResidualHypernetwork({12: 12}, structure)
    ResidualHypernetwork({12: 12}, structure, "Normal")


SPREADS = {  # standard deviation of a weight [outputs, inputs], and whether it is uniform
    "Normal": (lambda inputs, outputs: 0.01, False),
    "XavierUniform": (lambda inputs, outputs: math.sqrt(2 / (inputs + outputs)), True),
    "XavierNormal": (lambda inputs, outputs: math.sqrt(2 / (inputs + outputs)), False),
    "KaimingUniform": (lambda inputs, outputs: math.sqrt(2 / inputs), True),
    "KaimingNormal": (lambda inputs, outputs: math.sqrt(2 / inputs), False),
}


@pytest.mark.parametrize("initialization", SPREADS)
@pytest.mark.parametrize("skip_connection", [False, True])
def test_a1111s_initial_weights_have_their_distributions(initialization, skip_connection):
    structure = ResidualStructure((1, 2, 1), "leakyrelu", layer_norm=True, skip_connection=skip_connection)
    f = single(structure, width=200, initialization=initialization)
    linears = [module for module in f.modules() if isinstance(module, torch.nn.Linear)]
    norms = [module for module in f.modules() if isinstance(module, torch.nn.LayerNorm)]
    deviation, uniform = SPREADS[initialization]
    assert len(linears) == len(norms) == 2
    for linear in linears:
        expected = deviation(linear.in_features, linear.out_features)
        assert linear.weight.std().item() == pytest.approx(expected, rel=0.02)
        assert linear.weight.abs().max().item() == pytest.approx(expected * math.sqrt(3), rel=0.01) if uniform else True
        assert not linear.bias.any()
    for norm in norms:
        assert norm.weight.std().item() == pytest.approx(0.01, rel=0.2) and abs(norm.weight.mean().item()) < 0.003
        assert not norm.bias.any()


@pytest.mark.parametrize("initialization", INITIALIZATIONS)
def test_the_seed_alone_decides_the_weights(initialization):
    structure = ResidualStructure((1, 2, 2, 1), "prelu")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = ResidualHypernetwork({8: 8, 12: 12}, structure, initialization, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = ResidualHypernetwork({8: 8, 12: 12}, structure, initialization, seed=3)
    other = ResidualHypernetwork({8: 8, 12: 12}, structure, initialization, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert not torch.equal(first.pair(8)[0].linear[0].weight, first.pair(8)[1].linear[0].weight)


def test_initial_weights_by_an_unknown_name_are_refused():
    with pytest.raises(ConfigError, match="KaimingNormal"):
        ResidualHypernetwork({8: 8}, initialization="Orthogonal")


# pairs


def test_pairs_are_found_by_width_or_by_the_name_of_the_layer():
    by_width = ResidualHypernetwork({8: 8, 12: 12})
    by_layer = ResidualHypernetwork({LAYER: 8, LAYER.replace("attn2", "attn1"): 12})
    assert (by_width.keys, by_width.per_layer, 12 in by_width, 9 in by_width) == ((8, 12), False, True, False)
    assert (by_layer.keys[0], by_layer.per_layer, LAYER in by_layer, 8 in by_layer) == (LAYER, True, True, False)
    assert by_layer.pair(LAYER)[0](torch.randn(3, 8)).shape == (3, 8)
    with pytest.raises(KeyError):
        by_width.pair(9)


def test_modules_are_registered_once_and_their_state_can_be_loaded():
    network = ResidualHypernetwork({LAYER: 8}, initialization="Normal", seed=1)
    other = ResidualHypernetwork({LAYER: 8}, initialization="Normal", seed=2)
    other.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 8)
    assert len(list(network.parameters())) == 8
    assert torch.equal(other.pair(LAYER)[1](x), network.pair(LAYER)[1](x))


def test_a_network_made_under_inference_mode_can_be_trained():
    with torch.inference_mode():
        network = ResidualHypernetwork({8: 8})
    f = network.pair(8)[0]
    f(torch.randn(2, 8)).sum().backward()
    assert all(not weight.is_inference() and weight.grad is not None for weight in f.parameters())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.lists(st.floats(0.2, 4), min_size=0, max_size=3), st.integers(0, 3))
def test_f_keeps_the_shape_for_every_structure_and_number_of_dimensions(width, inner, dimensions):
    structure = ResidualStructure((1, *inner, 1), "relu")
    if min(int(width * multiple) for multiple in structure.layer_structure) < 1:
        return
    f = single(structure, width)
    x = torch.randn(*[2] * dimensions, width)
    assert f(x).shape == x.shape


@pytest.mark.parametrize("structure", [
    ResidualStructure((1, 2, 1)), ResidualStructure((1, 0.5, 2, 1.5, 1)), ResidualStructure((1, 2, 1), dropout_structure=(0, 0.5, 0)),
    ResidualStructure((1, 2, 1), activate_output=True),
])  # fmt: skip
def test_a_linear_chain_flattens_to_one_matrix_and_one_bias(structure):
    network = ResidualHypernetwork({12: 12, 20: 20}, structure, "XavierNormal", 1).eval()
    for width in network.keys:
        for f in network.pair(width):
            shuffled(f)
    network.name, network.step, network.metadata["uncond"] = "ink", 7, "no"
    flat = flattened(network)
    assert flat.structure.layer_structure == (1, 1) and flat.keys == network.keys and not flat.training
    assert (flat.name, flat.step, flat.metadata["uncond"]) == ("ink", 7, "no")
    for width in network.keys:
        for f, one in zip(network.pair(width), flat.pair(width), strict=True):
            x = torch.randn(2, 5, width)
            expected = by_formula(copy.deepcopy(f).double(), x.double(), structure)
            torch.testing.assert_close(one(x).double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("structure", [
    ResidualStructure((1, 2, 1), "relu"), ResidualStructure((1, 2, 1), layer_norm=True), ResidualStructure((1, 0.25, 1)),
    ResidualStructure((1, 0.5, 1)), ResidualStructure((1, 1)), ResidualStructure((1, 2, 1), skip_connection=True),
])  # fmt: skip
def test_what_is_no_linear_chain_or_cheaper_as_it_is_stays(structure):
    network = ResidualHypernetwork({12: 12}, structure, "XavierNormal", 1)
    assert flattened(network) is network


def test_half_precision_rounds_the_change_of_a_flattened_network_and_not_what_it_is_added_to():
    network = ResidualHypernetwork({64: 64}, ResidualStructure((1, 2, 1)), "Normal", 1).eval()
    f = flattened(network).to(torch.bfloat16).pair(64)[0]
    x = torch.randn(2, 5, 64)
    change = network.pair(64)[0](x)
    assert change.abs().max() < 0.02 * x.abs().max()
    assert (f(x.bfloat16()).float() - change).abs().max() < 0.03 * change.abs().max()
