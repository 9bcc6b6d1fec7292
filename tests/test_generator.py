"""Generated weights against the formulas: what a fresh generator does, how conditions act, what learns, what a file holds."""
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import LdmUNet, diffusers_unet
from safetensors import safe_open

from hypernetworks import files
from hypernetworks.attention import Strength, find_projections
from hypernetworks.conditions import Condition
from hypernetworks.errors import ConfigError, FileRefused, ModelUnfit, NameRefused, NameTaken, NotBound, TrainingFailed
from hypernetworks.generator import Hypernetwork, apply_weights
from hypernetworks.generator_files import describe_generator, load_generator, save_generator
from hypernetworks.lora import select_rows
from hypernetworks.residual import ResidualHypernetwork

UNET = diffusers_unet()
X, CONTEXT = torch.randn(3, 4, 8, 8, generator=torch.manual_seed(1)), torch.randn(3, 7, 16, generator=torch.manual_seed(2))
DECODERS = ("basis", "rank_token", "lidb")
SMALL = dict(embedding_dim=24, hidden_dim=32, rank=2, basis_size=3, auxiliary=(10, 6), tasks=("denoise", "upscale", "colour"))


def small(decoder="basis", trained=False, **changes):
    network = Hypernetwork(**SMALL | dict(decoder=decoder) | changes).bind(UNET)
    if trained:
        generator = torch.manual_seed(7)
        for parameter in network.decoder.parameters():
            parameter.data += 0.03 * torch.randn(parameter.shape, generator=generator)
    return network


def condition(rows=3, seed=3):
    generator = torch.manual_seed(seed)
    return Condition(
        text=torch.randn(rows, 16, generator=generator),
        image=torch.randn(rows, 4, 8, 8, generator=generator),
        task=torch.arange(rows) % 3,
        dropped=torch.arange(rows) == rows - 1,
    )


def predict(unet=UNET):
    return unet(X, torch.tensor([10, 500, 900]), encoder_hidden_states=CONTEXT).sample


def bare_prediction():
    with torch.no_grad():
        return predict()


def deltas(weights):
    return {name: (up @ down).detach() for name, (down, up) in weights.items()}


def same(first, second, **tolerance):
    return all(torch.allclose(first[name], second[name], **tolerance) for name in first)


def test_the_public_sketch_generates_weights_for_every_projection():
    network = Hypernetwork(target_layers=["attn1", "attn2"], embedding_dim=24, hidden_dim=32)
    with pytest.raises(NotBound, match="bind"):
        network.generate_weights(Condition.none())
    weights = network.bind(UNET).generate_weights(Condition(text=torch.randn(3, 16)))
    projections = find_projections(UNET)
    assert list(weights) == [p.name for p in projections]
    for p in projections:
        down, up = weights[p.name]
        assert down.shape == (3, 4, p.in_width) and up.shape == (3, p.out_width, 4)


def test_layers_are_chosen_by_attention_projection_and_block():
    network = small(target_layers=["attn2"], projections=("q", "v"), blocks=("middle", "output"))
    wanted = [p.name for p in find_projections(UNET) if p.attention == "attn2" and p.part in "qv" and p.block != "input"]
    assert [layer.name for layer in network.layers] == wanted


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_fresh_generator_changes_nothing_and_exactly_one_factor_is_zero(decoder):
    weights = small(decoder).generate_weights(condition())
    for down, up in weights.values():
        assert not up.any()
        assert 0.5 < down.std() * down.shape[-1] ** 0.5 < 2.5  # A0 and dA, each of variance 1 / in
    with torch.no_grad(), apply_weights(UNET, weights):
        assert torch.equal(predict(), bare_prediction())


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_first_factor_depends_on_condition_and_layer_as_much_as_on_its_offset(decoder):
    """Hyperfan-in: dA has the variance 1 / in of A0 itself (Chang et al. 2020)."""
    network = small(decoder, embedding_dim=128, rank=8, basis_size=16)
    for offset in network.decoder.base.values():
        offset["down"].data.zero_()
    factors = [down for down, _ in network.generate_weights(Condition(text=torch.randn(8, 16, generator=torch.manual_seed(3)))).values()]
    assert 0.7 < torch.stack([down.square().mean() * down.shape[-1] for down in factors]).mean() < 1.4
    assert torch.stack([down.var(0).mean() * down.shape[-1] for down in factors]).mean() > 0.25  # between conditions
    assert (factors[0] - factors[1]).square().mean() > 0.25 * factors[0].square().mean()  # between the first layer's q and k


@pytest.mark.parametrize("strength", [0.0, torch.zeros(3), Strength(1.0, input=0, middle=0, output=0)])
def test_strength_0_changes_no_bit(strength):
    with torch.no_grad(), apply_weights(UNET, small(trained=True).generate_weights(condition()), strength):
        assert torch.equal(predict(), bare_prediction())


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_row_is_as_if_its_own_delta_were_merged(decoder):
    weights = small(decoder, trained=True).generate_weights(condition())
    with torch.no_grad(), apply_weights(UNET, weights, 0.7):
        batched = predict()
    assert not torch.allclose(batched, bare_prediction(), atol=1e-3)
    for row in (0, 1):
        merged = diffusers_unet()
        modules = dict(merged.named_modules())
        with torch.no_grad():
            for name, (down, up) in weights.items():
                modules[name].weight += 0.7 * up[row] @ down[row]
            assert torch.allclose(predict(merged)[row], batched[row], atol=1e-5, rtol=1e-5)


def test_weights_of_one_condition_act_on_all_rows_and_rows_can_be_chosen():
    weights = small(trained=True).generate_weights(condition())
    with torch.no_grad():
        with apply_weights(UNET, select_rows(weights, [1])):
            one = predict()
        with apply_weights(UNET, select_rows(weights, [1, 1, 1])):
            assert torch.allclose(predict(), one, atol=1e-6)
        with apply_weights(UNET, select_rows(weights, [0, 1, 2]), torch.tensor([0.0, 1.0, 0.0])):
            rows = predict()
    assert torch.allclose(rows[1], one[1], atol=1e-6)
    assert torch.allclose(rows[[0, 2]], bare_prediction()[[0, 2]], atol=1e-6)


def test_a_row_depends_on_its_own_condition_only():
    network, whole = small(trained=True), condition()
    weights = network.generate_weights(whole)
    for row in range(3):
        alone = network.generate_weights(whole.select([row]))
        assert same(deltas(alone), deltas(select_rows(weights, [row])), atol=1e-6)
    first, second = deltas(select_rows(weights, [0])), deltas(select_rows(weights, [1]))
    assert not same(first, second, atol=1e-3)


def test_a_dropped_row_is_the_condition_that_says_nothing():
    network = small(trained=True)
    dropped = network.generate_weights(condition().drop(torch.tensor([True, False, False])))
    nothing = deltas(network.generate_weights(Condition.none()))
    assert same(deltas(select_rows(dropped, [0])), nothing, atol=1e-6)
    assert same(deltas(select_rows(dropped, [2])), nothing, atol=1e-6)
    assert not same(deltas(select_rows(dropped, [1])), nothing, atol=1e-3)


@pytest.mark.parametrize("decoder", DECODERS)
def test_gradients_reach_every_parameter_after_one_step(decoder):
    network = small(decoder)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    target = torch.randn(X.shape, generator=torch.manual_seed(5))
    for _ in range(2):
        optimizer.zero_grad()
        with apply_weights(UNET, network(condition())):
            loss = (predict() - target).square().mean()
        loss.backward()
        optimizer.step()
    dead = [name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert dead == []


@pytest.mark.parametrize("decoder", DECODERS)
def test_training_lowers_the_loss_from_the_start(decoder):
    network = small(decoder)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    target = bare_prediction() + 0.3 * torch.randn(X.shape, generator=torch.manual_seed(5))
    losses = []
    for _ in range(5):
        with apply_weights(UNET, network(condition())):
            loss = (predict() - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]


@pytest.mark.parametrize("kind, features", [("text", torch.randn(2, 16)), ("image", torch.randn(2, 4, 8, 8))])
def test_the_output_does_not_grow_with_the_norm_of_the_condition(kind, features):
    network = small(trained=True)
    sizes = [
        torch.stack([delta.square().mean() for delta in deltas(network.generate_weights(Condition(**{kind: factor * features}))).values()]).sum()
        for factor in (1, 1000)
    ]
    assert 0.5 < sizes[1] / sizes[0] < 2


def test_several_pictures_and_image_tokens_are_conditions_too():
    pictures = torch.randn(2, 3, 4, 8, 8)
    network = small(trained=True)
    several = deltas(network.generate_weights(Condition(image=pictures)))
    other_order = deltas(network.generate_weights(Condition(image=pictures[:, [2, 0, 1]])))
    assert same(several, other_order, atol=1e-5)
    twice = deltas(network.generate_weights(Condition(image=pictures[:, [0, 0]])))
    assert same(twice, deltas(network.generate_weights(Condition(image=pictures[:, 0]))), atol=1e-5)
    tokens = Hypernetwork(**SMALL, image_features="tokens", image_width=40).bind(UNET)
    assert len(tokens.generate_weights(Condition(image=torch.randn(2, 5, 40)))) == len(network.layers)


def test_a_blend_mixes_the_deltas_and_not_their_factors():
    network = small(trained=True)
    first, second = Condition(text=torch.randn(1, 16)), Condition(image=torch.randn(1, 4, 8, 8))
    one, two = deltas(network.generate_weights(first)), deltas(network.generate_weights(second))
    blended = deltas(network.generate_weights(first.blended(second, 0.3)))
    assert same(blended, {name: 0.7 * one[name] + 0.3 * two[name] for name in one}, atol=1e-5)
    nested = deltas(network.generate_weights(first.blended(second, 0.3).blended(second, 0.5)))
    assert same(nested, {name: 0.35 * one[name] + 0.65 * two[name] for name in one}, atol=1e-5)
    for share, alone in ((0, one), (1, two)):
        ends = network.generate_weights(first.blended(second, share))
        assert same(deltas(ends), alone, atol=0, rtol=0) and all(down.shape[1] == 2 for down, _ in ends.values())


def test_checkpointed_gradients_are_the_plain_ones():
    gradients = []
    for checkpointing in (False, True):
        unet, network = diffusers_unet().train(), small(trained=True)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        with apply_weights(unet, network(condition())):
            predict(unet).square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(grad is not None for grad in gradients[1])
    assert all(torch.allclose(plain, again, rtol=1e-4, atol=1e-7) for plain, again in zip(*gradients, strict=True))


def test_weights_are_made_in_float32_under_autocast():
    network = small(trained=True)
    plain = deltas(network.generate_weights(condition()))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network.generate_weights(condition())
    assert same(deltas(mixed), plain, atol=0, rtol=0)


def test_equal_seeds_give_equal_weights_and_no_global_random_state_is_used():
    before = torch.get_rng_state()
    one, two, other = small(seed=1).state_dict(), small(seed=1).state_dict(), small(seed=2).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["decoder.head.weight"], other["decoder.head.weight"])


def test_a_generator_bound_under_inference_mode_can_be_trained():
    with torch.inference_mode():
        network = small()
    network(condition())["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"][0].sum().backward()


def test_lidb_factors_are_carried_by_orthonormal_matrices():
    matrices = dict(small("lidb").decoder.named_buffers())
    assert {tuple(matrix.shape) for matrix in matrices.values()} == {(10, 32), (10, 64), (10, 16), (32, 6), (64, 6)}
    for matrix in matrices.values():
        wide = matrix if matrix.shape[0] < matrix.shape[1] else matrix.T
        assert torch.allclose(wide @ wide.T, torch.eye(len(wide)), atol=1e-5)


def test_conditions_that_do_not_fit_are_refused_in_a_sentence():
    network = small()
    for odd, words in (
        (Condition(text=torch.zeros(1, 17)), "width 17"),
        (Condition(image=torch.zeros(1, 3, 8, 8)), "width 3"),
        (Condition(image=torch.zeros(4, 8)), "shape"),
        (Condition(task=torch.tensor([3])), "0 to 2"),
    ):
        with pytest.raises(ConfigError, match=words):
            network.generate_weights(odd)
    with pytest.raises(ConfigError, match="not made for image"):
        small(conditions=("text",)).generate_weights(Condition(image=torch.zeros(1, 4, 8, 8)))
    for make in (Condition, lambda: Condition(text=torch.zeros(2, 16), task=torch.zeros(3)), lambda: Condition.none().blended(Condition.none(), 2)):
        with pytest.raises(ConfigError):
            make()


def test_keys_of_conditions_tell_them_apart():
    text = torch.randn(2, 16)
    same_again = Condition(text=text.clone())
    assert Condition(text=text).key() == same_again.key()
    others = [Condition(text=text + 1), Condition(image=text[..., None]), same_again.drop(torch.tensor([True, False])), Condition.none(2)]
    blends = [same_again.blended(others[0], 0.5), others[0].blended(same_again, 0.5), same_again.blended(others[0], 0.25)]
    assert len({one.key() for one in (same_again, *others, *blends)}) == 8


@pytest.mark.parametrize("options", [
    {"decoder": "dense"}, {"rank": 0}, {"target_layers": ["attn3"]}, {"target_layers": "attn1"}, {"projections": ()}, {"basis_size": 2.5},
    {"conditions": ("sound",)}, {"conditions": ("task",)}, {"auxiliary": (1,)}, {"tasks": ("a", "a")}, {"colour": "blue"},
])
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigError):
        Hypernetwork(**options)


def test_an_unknown_option_is_named():
    with pytest.raises(ConfigError, match="learning_rat"):
        Hypernetwork(learning_rat=1)


def test_a_rank_larger_than_a_layer_is_refused_with_the_layer_and_its_width():
    with pytest.raises(ConfigError, match=r"rank 20 .*attn2\.to_k, whose width is 16"):
        Hypernetwork(**SMALL | dict(rank=20)).bind(UNET)


def test_a_generator_for_another_model_is_refused():
    network = small()
    assert network.bind(diffusers_unet()) is network
    for other in (diffusers_unet(cross_attention_dim=24), diffusers_unet(block_out_channels=[32, 32]), LdmUNet()):
        with pytest.raises(ModelUnfit, match="another model"):
            network.bind(other)
        with pytest.raises(ModelUnfit, match="another model"), apply_weights(other, network(condition())):
            pass


def test_a_web_uis_unet_gets_the_same_layers_as_diffusers():
    unet = LdmUNet()
    network = Hypernetwork(**SMALL).bind(unet)
    assert network.layers[0].name == "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    with torch.no_grad(), apply_weights(unet, network(condition())):
        assert torch.equal(unet(torch.ones(3, 5, 8), context=CONTEXT), LdmUNet()(torch.ones(3, 5, 8), context=CONTEXT))


# files


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_file_brings_back_every_bit_and_everything_said_about_it(decoder, tmp_path):
    network = small(decoder, trained=True, text_width=20)
    network.name, network.description, network.step = "painter", "styles", 40
    network.metadata = {"base_model_hash": "abc", "condition_encoder": "latents", "preprocessing": "none", "date": "2024-01-01"}
    path = save_generator(network, tmp_path / "painter.safetensors")
    loaded = load_generator(path)
    state, again = network.state_dict(), loaded.state_dict()
    assert state.keys() == again.keys() and all(torch.equal(state[name], again[name]) for name in state)
    assert (loaded.structure, loaded.layers, loaded.name, loaded.step) == (network.structure, network.layers, "painter", 40)
    assert loaded.metadata == network.metadata
    text = Condition(text=torch.randn(1, 20))
    assert same(deltas(loaded.generate_weights(text)), deltas(network.generate_weights(text)), atol=0, rtol=0)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert describe_generator(path).structure.tasks == SMALL["tasks"]


def test_a_file_has_the_documented_names(tmp_path):
    network = small()
    path = save_generator(network, tmp_path / "painter.safetensors")
    with safe_open(path, framework="pt") as file:
        names, metadata = set(file.keys()), file.metadata()
        layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
        shapes = [file.get_slice(f"decoder.{kind}.{layer}.{part}").get_shape() for kind in ("base", "basis") for part in ("down", "up")]
    assert shapes == [[2, 16], [32, 2], [3, 2, 16], [3, 32, 2]]
    assert {name.split(".")[0] for name in names} == {"encoder", "generator", "decoder"}
    assert (metadata["format"], metadata["kind"]) == ("hypernetworks", "generator")
    assert json.loads(metadata["layers"]) == [list(layer) for layer in network.layers]
    assert json.loads(metadata["architecture"])["rank"] == 2


def test_half_precision_files_are_half_as_large_and_stable(tmp_path):
    network = small(trained=True, embedding_dim=64)
    whole = save_generator(network, tmp_path / "whole.safetensors")
    half = save_generator(network, tmp_path / "half.safetensors", dtype=torch.float16)
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    loaded = load_generator(half)
    assert all(weight.dtype == torch.float32 for weight in loaded.state_dict().values())
    loaded.name = ""
    again = load_generator(save_generator(loaded, tmp_path / "again.safetensors", dtype=torch.float16))
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in loaded.state_dict().items())


def test_what_must_not_be_saved_is_refused(tmp_path):
    with pytest.raises(NotBound):
        save_generator(Hypernetwork(), tmp_path / "a.safetensors")
    with pytest.raises(NameRefused):
        save_generator(small(), tmp_path / "a.pt")
    save_generator(small(), tmp_path / "a.safetensors")
    with pytest.raises(NameTaken):
        save_generator(small(), tmp_path / "a.safetensors")
    broken = small()
    broken.encoder.null.data[0] = float("nan")
    with pytest.raises(TrainingFailed):
        save_generator(broken, tmp_path / "b.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_other_files_are_refused_with_what_they_are(tmp_path):
    residual = files.save(ResidualHypernetwork({16: 16}), tmp_path / "residual.safetensors")
    with pytest.raises(FileRefused, match="residual"):
        load_generator(residual)
    with pytest.raises(FileRefused, match="no file"):
        load_generator(tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(FileRefused):
        load_generator(tmp_path / "text.safetensors")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    network = Hypernetwork(target_layers=["attn2"], projections=("k",), embedding_dim=8, hidden_dim=8, rank=1, basis_size=2, conditions=("text",))
    return save_generator(network.bind(UNET), tmp_path_factory.mktemp("generator") / "painter.safetensors")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.999))
def test_a_truncated_file_is_refused(share, stored):
    data = stored.read_bytes()
    cut = stored.with_name("cut.safetensors")
    cut.write_bytes(data[: int(share * len(data))])
    with pytest.raises(FileRefused):
        load_generator(cut)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(["architecture", "layers", "step", "format_version"]), value=st.one_of(
    st.text(max_size=10), st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists, max_leaves=4).map(json.dumps),
    st.dictionaries(st.sampled_from(["rank", "decoder", "embedding_dim", "tasks", "depth", "odd"]), st.integers() | st.text(max_size=3), min_size=1).map(json.dumps),
))
def test_a_header_that_describes_something_else_is_refused(key, value, stored):
    data = stored.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if key == "step" and value.strip().lstrip("+-").replace("_", "").isdigit() or header["__metadata__"][key] == value:
        return
    header["__metadata__"][key] = value
    text = json.dumps(header).encode()
    odd = stored.with_name("odd.safetensors")
    odd.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(FileRefused):
        load_generator(odd)
