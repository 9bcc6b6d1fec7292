"""Edits on a UNet against the formula x + m f(x), written out with plain hooks; and that nothing is left behind."""
import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import LdmUNet, diffusers_unet, hooks

from hypernetworks.attention import Attachment, LowRankEdit, ResidualEdit, Strength, attached, find_projections, network_widths
from hypernetworks.errors import ModelUnfit
from hypernetworks.residual import ResidualHypernetwork, ResidualStructure

UNET = diffusers_unet()
BARE = copy.deepcopy(UNET)  # never gets a hook
X, CONTEXT = torch.randn(2, 4, 8, 8, generator=torch.manual_seed(1)), torch.randn(2, 7, 16, generator=torch.manual_seed(2))


def network(per_layer=False, unet=UNET, seed=0, targets=("attn1", "attn2"), **structure):
    about = ResidualStructure(**dict(activation="relu") | structure)
    made = ResidualHypernetwork(network_widths(unet, targets, per_layer), about, initialization="KaimingUniform", seed=seed)
    generator = torch.manual_seed(seed + 100)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return made.eval()


def predict(unet=UNET, context=CONTEXT):
    return unet(X, torch.tensor([10, 500]), encoder_hidden_states=context).sample


def by_formula(unet, *chain):
    """The prediction with x -> x + m f(x) applied to the input of each to_k and to_v, as plainly as it can be said."""
    handles = []
    for p in find_projections(unet):
        if p.part in ("k", "v"):

            def edit(module, inputs, p=p):
                x = inputs[0]
                for one, strength_of in chain:
                    key = p.layer if one.per_layer else p.in_width
                    if key in one:
                        x = x + strength_of(p) * one.pair(key)["kv".index(p.part)](x)
                return (x,)

            handles.append(p.module.register_forward_pre_hook(edit))
    result = predict(unet)
    for handle in handles:
        handle.remove()
    return result


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("structure", [
    {}, {"layer_norm": True}, {"layer_structure": (1, 1.5, 2, 1), "activation": "swish"}, {"activate_output": True}, {"activation": "linear"},
    {"skip_connection": True},
])
def test_one_network_is_the_formula(per_layer, structure):
    one = network(per_layer, **structure)
    with torch.no_grad(), attached(UNET, [ResidualEdit(one, Strength(0.7))]):
        got = predict()
    with torch.no_grad():
        assert torch.allclose(got, by_formula(UNET, (one, lambda p: 0.7)), atol=1e-6)
        assert not torch.allclose(got, predict(), atol=1e-3)


def test_a_chain_applies_in_its_order():
    one, two, three = network(seed=1), network(seed=2, targets=("attn2",)), network(True, seed=3)
    with torch.no_grad(), attached(UNET, [ResidualEdit(one, Strength(0.5)), ResidualEdit(two, Strength(-0.3)), ResidualEdit(three)]):
        got = predict()
    with torch.no_grad():
        expected = by_formula(UNET, (one, lambda p: 0.5), (two, lambda p: -0.3), (three, lambda p: 1.0))
        other = by_formula(UNET, (two, lambda p: -0.3), (one, lambda p: 0.5), (three, lambda p: 1.0))
    assert torch.allclose(got, expected, atol=1e-5)
    assert not torch.allclose(got, other, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(*[st.sampled_from([0.0, 0.5, 1.0, -1.0])] * 5)
def test_strengths_multiply_by_part_and_block(k, v, inward, middle, outward):
    one, two = network(seed=4), network(seed=5)
    strength = Strength(0.8, k, v, inward, middle, outward)
    with torch.no_grad(), attached(UNET, [ResidualEdit(one, strength), ResidualEdit(two, Strength(0.4))]):
        got = predict()

    def product(p):
        return 0.8 * {"k": k, "v": v}[p.part] * {"input": inward, "middle": middle, "output": outward}[p.block]

    with torch.no_grad():
        assert torch.allclose(got, by_formula(UNET, (one, product), (two, lambda p: 0.4)), atol=1e-5)


@pytest.mark.parametrize("per_layer", [False, True])
def test_strength_zero_changes_no_bit(per_layer):
    with torch.no_grad():
        bare = predict()
        with attached(UNET, [ResidualEdit(network(per_layer), Strength(0.0))]):
            assert torch.equal(predict(), bare)


def test_each_row_has_its_own_strength():
    one = network()
    with torch.no_grad(), attached(UNET, [ResidualEdit(one, Strength(torch.tensor([0.0, 0.6])))]):
        got = predict()
    with torch.no_grad():
        assert torch.equal(got[0], predict()[0])
        assert torch.allclose(got[1], by_formula(UNET, (one, lambda p: 0.6))[1], atol=1e-6)


def test_strength_may_change_between_passes():
    one = network()
    edit = ResidualEdit(one, Strength(1.0))
    with torch.no_grad(), attached(UNET, [edit]):
        predict()
        edit.strength = Strength(0.25)
        got = predict()
    with torch.no_grad():
        assert torch.allclose(got, by_formula(UNET, (one, lambda p: 0.25)), atol=1e-6)


def test_the_shared_context_is_evaluated_once_per_pass_and_prefix():
    one, two = network(targets=("attn2",), seed=1), network(targets=("attn2",), seed=2)
    layers = sum(p.part == "k" and p.attention == "attn2" for p in find_projections(UNET))
    assert layers > 4
    with torch.no_grad(), attached(UNET, [ResidualEdit(one)]) as attachment:
        predict()
        assert attachment.evaluations == 2  # K and V
        predict()
        assert attachment.evaluations == 4
    # the first network is alike everywhere, the second differs between input, middle and output blocks: 1 + 3 prefixes each for K and V
    with torch.no_grad(), attached(UNET, [ResidualEdit(one), ResidualEdit(two, Strength(input=0.5, output=2.0))]) as attachment:
        predict()
        assert attachment.evaluations == 8


def test_equal_contexts_of_two_passes_are_not_taken_for_one():
    context = CONTEXT.clone()
    one = network()
    with torch.no_grad(), attached(UNET, [ResidualEdit(one)]):
        predict(context=context)
        context *= 2  # the same tensor, other values
        got = predict(context=context)
    with torch.no_grad(), attached(UNET, [ResidualEdit(one)]):
        assert torch.equal(got, predict(context=CONTEXT * 2))


def test_without_gradients_not_a_bit_differs_from_the_formula():
    one = network(activation="swish")
    with torch.no_grad():
        for strength in (1.0, 0.7):
            with attached(UNET, [ResidualEdit(one, Strength(strength))]):
                assert torch.equal(predict(), by_formula(BARE, (one, lambda p, strength=strength: strength)))


def evaluations(attachment, context=CONTEXT):
    """How many networks one pass evaluates; put on before it and taken off after it, as web UIs do."""
    before = attachment.evaluations
    attachment.put_on()
    with torch.no_grad():
        predict(context=context)
    attachment.remove()
    return attachment.evaluations - before


def test_frozen_networks_are_evaluated_again_only_for_another_context_or_strength():
    edit = ResidualEdit(network(targets=("attn2",)), Strength([0.0, 0.5]))
    attachment, context = Attachment(UNET, [edit], frozen=True), CONTEXT.clone()
    assert evaluations(attachment, context) == 2
    edit.strength = Strength([0.0, 0.5])
    assert evaluations(attachment, context.clone()) == 0  # equal values in other tensors
    edit.strength = Strength([0.5, 0.5])
    assert evaluations(attachment, context) == 2
    context[1, 3, 5] += 1e-6  # the same tensor, other values
    assert evaluations(attachment, context) == 2
    assert evaluations(attachment, context[:, :5]) == 2
    assert hooks(UNET) == 0


def test_what_frozen_networks_keep_is_what_they_give():
    one, two, other = network(seed=1), network(seed=2, targets=("attn2",)), CONTEXT.flip(1)
    edits = [ResidualEdit(one, Strength(0.6)), ResidualEdit(two, Strength(0.3, output=2.0))]
    with torch.no_grad():
        expected = {}
        for name, context in (("first", CONTEXT), ("other", other)):
            with attached(UNET, edits):
                expected[name] = predict(context=context)
        attachment = Attachment(UNET, edits, frozen=True)
        for name, context in (("first", CONTEXT), ("first", CONTEXT.clone()), ("other", other), ("first", CONTEXT)):
            attachment.put_on()
            assert torch.equal(predict(context=context), expected[name])
            attachment.remove()


def test_networks_that_may_change_are_evaluated_at_each_pass():
    one = network()
    with torch.no_grad(), attached(UNET, [ResidualEdit(one)]):
        predict()
        for parameter in one.parameters():
            parameter.mul_(0.5)
        got = predict()
        assert torch.equal(got, by_formula(BARE, (one, lambda p: 1.0)))


def test_frozen_networks_keep_nothing_that_has_gradients():
    attachment = Attachment(UNET, [ResidualEdit(network(targets=("attn2",)))], frozen=True)
    attachment.put_on()
    predict()
    predict()
    attachment.remove()
    assert attachment.evaluations == 4


def gradients(unet, one, checkpointing):
    unet.train() if checkpointing else unet.eval()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    one.zero_grad()
    with attached(unet, [ResidualEdit(one)]):
        predict(unet).pow(2).sum().backward()
    if checkpointing:
        unet.disable_gradient_checkpointing()
        unet.eval()
    return [p.grad.clone() for p in one.parameters()]


@pytest.mark.parametrize("per_layer", [False, True])
def test_checkpointed_gradients_are_the_plain_ones(per_layer):
    one = network(per_layer)
    plain, checkpointed = gradients(UNET, one, False), gradients(UNET, one, True)
    assert all(g.abs().max() > 0 for g in plain)
    for a, b in zip(plain, checkpointed, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6 * float(a.abs().max() + 1))


def test_the_frozen_unet_gets_no_gradient():
    gradients(UNET, network(), False)
    assert all(p.grad is None for p in UNET.parameters())


def test_dropout_acts_in_training_and_not_after():
    one = network(dropout_structure=(0, 0.5, 0))
    with torch.no_grad(), attached(UNET, [ResidualEdit(one)]):
        assert torch.equal(predict(), predict())
        one.train()
        assert not torch.equal(predict(), predict())
    one.eval()


def test_half_precision_unets_take_float_networks():
    half = diffusers_unet().to(torch.bfloat16)
    one = network()
    with torch.no_grad():
        with attached(half, [ResidualEdit(one)]):
            got = half(X.bfloat16(), 10, encoder_hidden_states=CONTEXT.bfloat16()).sample
        expected = by_formula(UNET, (one, lambda p: 1.0))
    assert got.dtype == torch.bfloat16
    with torch.no_grad():
        assert (got.float() - expected).abs().mean() < 0.2 * (predict() - expected).abs().mean()


def test_inference_tensors_are_taken():
    one = network()
    with torch.inference_mode():
        context = CONTEXT.clone()
        with attached(UNET, [ResidualEdit(one)]) as attachment:
            got = UNET(X.clone(), torch.tensor([10, 500]), encoder_hidden_states=context).sample
        assert attachment.evaluations > 0
    with torch.no_grad():
        assert torch.allclose(got.clone(), by_formula(UNET, (one, lambda p: 1.0)), atol=1e-6)


def test_low_rank_deltas_equal_merged_weights():
    unet = diffusers_unet()
    generator = torch.manual_seed(3)
    weights = {
        p.name: (torch.randn(1, 4, p.in_width, generator=generator) * 0.1, torch.randn(1, p.out_width, 4, generator=generator) * 0.1)
        for p in find_projections(unet)
    }
    with torch.no_grad():
        with attached(unet, [LowRankEdit(weights, Strength(0.5))]):
            got = predict(unet)
        for p in find_projections(unet):
            down, up = weights[p.name]
            p.module.weight += 0.5 * (up @ down)[0]
        assert torch.allclose(got, predict(unet), atol=1e-5)


def test_low_rank_deltas_per_row():
    generator = torch.manual_seed(3)
    weights = {
        p.name: (torch.randn(2, 4, p.in_width, generator=generator) * 0.1, torch.randn(2, p.out_width, 4, generator=generator) * 0.1)
        for p in find_projections(UNET)
    }
    with torch.no_grad():
        with attached(UNET, [LowRankEdit(weights)]):
            both = predict()
        for row in range(2):
            with attached(UNET, [LowRankEdit({name: (a[row:row + 1], b[row:row + 1]) for name, (a, b) in weights.items()})]):
                assert torch.allclose(predict()[row], both[row], atol=1e-5)


def test_removal_leaves_nothing_also_after_an_exception():
    before = predict(), hooks(UNET), [(name, id(p), p._version) for name, p in UNET.named_parameters()]
    with pytest.raises(RuntimeError, match="on purpose"), attached(UNET, [ResidualEdit(network())]):
        assert hooks(UNET) > 0
        predict()
        raise RuntimeError("on purpose")
    assert torch.equal(predict(), before[0]) and hooks(UNET) == before[1]
    assert [(name, id(p), p._version) for name, p in UNET.named_parameters()] == before[2]


def test_an_exception_within_a_pass_leaves_nothing():
    attachment_of = attached(UNET, [ResidualEdit(network())])
    with pytest.raises(RuntimeError), attachment_of as attachment:
        UNET(X, 10, encoder_hidden_states=CONTEXT[..., :5])
    assert hooks(UNET) == 0 and attachment._context is None


def test_a_network_for_another_model_is_refused_with_both_sides_named():
    other = ResidualHypernetwork({768: 768}, ResidualStructure(), initialization="zero")
    with pytest.raises(ModelUnfit, match="768.*16, 32, 64"), attached(UNET, [ResidualEdit(other)]):
        pass
    layers = network_widths(UNET, ("attn2",), per_layer=True)
    wrong = ResidualHypernetwork({layer: 24 for layer in layers}, ResidualStructure(), initialization="zero")
    with pytest.raises(ModelUnfit, match="24.*16"), attached(UNET, [ResidualEdit(wrong)]):
        pass
    assert hooks(UNET) == 0


def test_a_module_without_attention_is_refused():
    with pytest.raises(ModelUnfit, match="Linear"):
        find_projections(torch.nn.Linear(2, 2))


# diffusers' name of each spatial transformer of Stable Diffusion 1.5, as LoRA tools list them
SD15 = {
    "input_blocks.1.1": "down_blocks.0.attentions.0", "input_blocks.2.1": "down_blocks.0.attentions.1",
    "input_blocks.4.1": "down_blocks.1.attentions.0", "input_blocks.5.1": "down_blocks.1.attentions.1",
    "input_blocks.7.1": "down_blocks.2.attentions.0", "input_blocks.8.1": "down_blocks.2.attentions.1",
    "middle_block.1": "mid_block.attentions.0",
    "output_blocks.3.1": "up_blocks.1.attentions.0", "output_blocks.4.1": "up_blocks.1.attentions.1", "output_blocks.5.1": "up_blocks.1.attentions.2",
    "output_blocks.6.1": "up_blocks.2.attentions.0", "output_blocks.7.1": "up_blocks.2.attentions.1", "output_blocks.8.1": "up_blocks.2.attentions.2",
    "output_blocks.9.1": "up_blocks.3.attentions.0", "output_blocks.10.1": "up_blocks.3.attentions.1", "output_blocks.11.1": "up_blocks.3.attentions.2",
}


def test_a1111_names_become_diffusers_names():
    unet = LdmUNet()
    modules = dict(unet.named_modules())
    found = {p.layer: p.module for p in find_projections(unet) if p.part == "k"}
    assert len(found) == 32
    for theirs, ours in SD15.items():
        for attention in ("attn1", "attn2"):
            assert found[f"{ours}.transformer_blocks.0.{attention}"] is modules[f"{theirs}.transformer_blocks.0.{attention}.to_k"]


def test_a_seed_gives_a_layer_the_same_weights_under_either_naming():
    sd15 = diffusers_unet(
        layers_per_block=2, block_out_channels=[8] * 4, attention_head_dim=1, norm_num_groups=4,
        down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    )
    theirs, ours = (network(per_layer=True, unet=unet).state_dict() for unet in (LdmUNet(), sd15))
    assert list(theirs) == list(ours) and len(theirs) == 32 * 2 * 4
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_a1111_unets_are_edited_by_the_same_formula():
    unet = LdmUNet()
    x, context = torch.randn(2, 5, 8), torch.randn(2, 7, 16)
    one = network(unet=unet)
    with torch.no_grad():
        bare = unet(x, None, context)
        with attached(unet, [ResidualEdit(one)]) as attachment:
            got = unet(x, None, context)
            self_attention = 2 * 16
            assert attachment.evaluations == 2 + self_attention
            assert torch.equal(unet(x, timesteps=None, context=context), got)
        for p in find_projections(unet):
            if p.part in ("k", "v"):
                f = one.pair(p.in_width)["kv".index(p.part)]
                p.module.register_forward_pre_hook(lambda module, inputs, f=f: (inputs[0] + f(inputs[0]),))
        assert torch.allclose(got, unet(x, None, context), atol=1e-5)
        assert not torch.allclose(got, bare, atol=1e-3)
