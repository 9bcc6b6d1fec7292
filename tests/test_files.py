"""Files of every variant against what the formula and A1111 itself compute; what is written comes back."""

import base64
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from hypernetworks import files
from hypernetworks.errors import ConfigError, TrainingFailed
from hypernetworks.files import describe, load, load_optimizer, preview_text, save, short_hash
from hypernetworks.residual import ACTIVATIONS, ResidualHypernetwork, ResidualStructure

GOLDEN = Path(__file__).parent / "golden"
STRENGTH = 0.7
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
VARIANTS = sorted(path.name for path in GOLDEN.glob("*.pt") if not path.name.startswith("native")) + [
    "own_by_width.safetensors",
    "own_by_layer.safetensors",
]


def assert_computes(network, expected, prefix, tolerance):
    """x + 0.7 f(x) for K and V of every pair."""
    for key in network.keys:
        x = expected[f"{prefix}{key}.x"]
        for part, f in zip("kv", network.pair(key), strict=True):
            torch.testing.assert_close(x + STRENGTH * f(x), expected[f"{prefix}{key}.{part}"], rtol=0, atol=tolerance)


def assert_same(network, other):
    """Bit-identical weights and equal facts."""
    assert (other.keys, other.widths, other.structure) == (network.keys, network.widths, network.structure)
    assert (other.name, other.step, other.description) == (network.name, network.step, network.description)
    for key in network.keys:
        for f, g in zip(network.pair(key), other.pair(key), strict=True):
            assert {n: w.numpy().tobytes() for n, w in f.state_dict().items()} == {
                n: w.numpy().tobytes() for n, w in g.state_dict().items()
            }


def some_network(structure=None, widths=None, **about):
    network = ResidualHypernetwork(
        widths or {6: 6, 8: 8}, structure or ResidualStructure((1, 2, 1), "swish"), "XavierNormal", seed=7
    )
    for name, value in ({"name": "some", "description": "a note", "step": 321} | about).items():
        setattr(network, name, value)
    return network


# every variant


def test_the_golden_files_are_the_bytes_that_were_frozen():
    lines = dict(reversed(line.split()) for line in (GOLDEN / "SHA256SUMS").read_text().splitlines())
    assert lines == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in GOLDEN.iterdir() if path.name != "SHA256SUMS"
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_computes_what_its_formula_says(variant):
    network = load(GOLDEN / variant)
    assert len(network.keys) == 2 and not network.training
    assert all(weight.dtype == torch.float32 for weight in network.parameters())
    assert_computes(network, load_file(GOLDEN / "expected.safetensors"), Path(variant).stem + ".", 1e-5)


@pytest.mark.parametrize("name", ["plain", "relu_ln"])
def test_files_of_a1111_compute_what_a1111_computes(name):
    network = load(GOLDEN / f"native_{name}.pt")
    assert network.keys == (48, 96, 128)
    assert_computes(network, load_file(GOLDEN / f"native_{name}.expected.safetensors"), "", 1e-6)
    assert (network.name, network.step, network.description) == (name, 123, "made by the native web UI")
    assert network.metadata["base_model"] == "some-model" and network.metadata["base_model_hash"] == "abcdef1234"


@pytest.mark.parametrize(
    "variant, structure",
    {
        "novelai": ResidualStructure((1, 2, 1), activate_output=True),
        "kohya": ResidualStructure((1, 2, 1), activate_output=True),
        "a1111_first_fields": ResidualStructure((1, 2, 1), activate_output=True),
        "a1111_use_dropout": ResidualStructure(
            (1, 2, 2, 1), dropout_structure=(0, 0.3, 0.3, 0), activate_output=True, last_layer_dropout=True
        ),
        "a1111_output_activated_by_default": ResidualStructure((1, 2, 1), "relu", activate_output=True),
        "a1111": ResidualStructure((1, 1.5, 1), "swish", layer_norm=True, dropout_structure=(0, 0.15, 0)),
        "a1111_prelu": ResidualStructure((1, 2, 1), "prelu"),
        "string_keys": ResidualStructure((1, 2, 1)),
        "aria1th_skip_connection": ResidualStructure(
            (1, 2, 1), "swish", layer_norm=True, dropout_structure=(0, 0.2, 0), skip_connection=True
        ),
        "aria1th_upsample_linear": ResidualStructure((1, 2, 1), "elu", skip_connection=True, upsample_linear=True),
        "losalina_fp16": ResidualStructure((1, 2, 1), dropout_structure=(0, 0, 0.3), activate_output=True),
        "losalina_bf16_last_layer_dropout": ResidualStructure(
            (1, 2, 1), "relu", dropout_structure=(0, 0, 0.3), activate_output=True, last_layer_dropout=True
        ),
        "own_by_width": ResidualStructure((1, 2, 1), "swish"),
    }.items(),
)
def test_the_structure_of_every_variant_is_found(variant, structure):
    (path,) = (path for path in GOLDEN.iterdir() if path.stem == variant and path.suffix in files.SUFFIXES)
    assert load(path).structure == structure
    assert describe(path).structure == structure


def test_what_our_own_golden_file_says_is_read():
    facts = describe(GOLDEN / "own_by_layer.safetensors")
    assert (facts.kind, facts.per_layer, facts.keys) == ("residual", True, (LAYER, LAYER.replace("down", "up")))
    assert (facts.name, facts.description, facts.step) == ("golden", "made for a test", 1234)
    assert facts.metadata["dataset_size"] == "16" and facts.metadata["date"] == "2024-01-02T03:04:05+00:00"
    assert json.loads(facts.metadata["settings"]) == {"batch_size": 4}
    assert facts.preview[:3] == b"\xff\xd8\xff"


def test_dropout_is_where_the_positions_leave_room_whatever_the_fields_say(tmp_path):
    contents = torch.serialization.load(GOLDEN / "a1111_use_dropout.pt", weights_only=True)
    for untrue in ({"use_dropout": False}, {"dropout_structure": [0, 0, 0, 0]}):
        torch.save(contents | untrue, tmp_path / "untrue.pt")
        assert load(tmp_path / "untrue.pt").structure.dropout_structure == (0, 0.3, 0.3, 0)
    torch.save(contents | {"dropout_structure": [0, 0.1, 0, 0]}, tmp_path / "untrue.pt")
    assert load(tmp_path / "untrue.pt").structure.dropout_structure == (0, 0.1, 0.3, 0)


@pytest.mark.parametrize("width, middle", [(48, 72), (49, 13), (7, 3), (93, 31), (320, 1)])
def test_widths_of_the_weights_count_where_the_layer_structure_is_missing(tmp_path, width, middle):
    shapes = {
        "linear.0.weight": (middle, width),
        "linear.0.bias": (middle,),
        "linear.1.weight": (width, middle),
        "linear.1.bias": (width,),
    }
    states = [{name: torch.randn(shape) for name, shape in shapes.items()} for _ in "kv"]
    torch.save({width: tuple(states)}, tmp_path / "a.pt")
    network = load(tmp_path / "a.pt")
    assert network.structure.widths(width) == (width, middle, width)
    x = torch.randn(2, width)
    by_hand = torch.nn.functional.linear(x, states[0]["linear.0.weight"], states[0]["linear.0.bias"])
    by_hand = torch.nn.functional.linear(by_hand, states[0]["linear.1.weight"], states[0]["linear.1.bias"])
    torch.testing.assert_close(network.pair(width)[0](x), by_hand)


def test_the_optimizer_beside_a_file_is_read_when_it_belongs_to_it(tmp_path):
    assert load_optimizer(GOLDEN / "kohya.pt") is None
    name, state = load_optimizer(GOLDEN / "a1111.pt")
    assert (
        name == "AdamW" and state["param_groups"][0]["lr"] == 0.001 and torch.equal(state["state"][0]["exp_avg"], torch.ones(2))
    )
    shutil.copy(GOLDEN / "kohya.pt", tmp_path / "other.pt")
    shutil.copy(GOLDEN / "a1111.pt.optim", tmp_path / "other.pt.optim")
    assert load_optimizer(tmp_path / "other.pt") is None


# writing and reading back


@st.composite
def structures(draw):
    multiples = (1, *draw(st.lists(st.sampled_from([0.5, 1, 1.3, 2, 2.75]), max_size=3)), 1)
    skip_connection = draw(st.booleans())
    return ResidualStructure(
        multiples,
        activation=draw(st.sampled_from(ACTIVATIONS)),
        layer_norm=draw(st.booleans()),
        dropout_structure=tuple(
            draw(st.lists(st.sampled_from([0, 0, 0.1, 0.35]), min_size=len(multiples), max_size=len(multiples)))
        ),
        activate_output=draw(st.booleans()),
        last_layer_dropout=draw(st.booleans()),
        skip_connection=skip_connection,
        upsample_linear=skip_connection and draw(st.booleans()),
    )


texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
everywhere = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@everywhere
@given(structure=structures(), per_layer=st.booleans(), text=texts, step=st.integers(0, 2**40))
def test_every_structure_comes_back_bit_for_bit_through_safetensors(tmp_path, structure, per_layer, text, step):
    widths = {LAYER: 6, LAYER + "b": 9} if per_layer else {6: 6, 9: 9}
    network = some_network(structure, widths, description=text, step=step)
    network.metadata = {"settings": text}
    path = save(network, tmp_path / "a.safetensors", overwrite=True)
    assert_same(network, load(path))
    assert load(path).metadata["settings"] == text
    facts = describe(path)
    assert (facts.widths, facts.structure, facts.step) == (network.widths, structure, step)
    empty = ResidualHypernetwork(facts.widths, facts.structure, initialization=None)  # the header alone rebuilds the network
    assert {n: w.shape for n, w in empty.state_dict().items()} == {n: w.shape for n, w in network.state_dict().items()}


@everywhere
@given(structure=structures(), text=texts, step=st.integers(0, 2**40))
def test_every_structure_comes_back_bit_for_bit_through_pt(tmp_path, structure, text, step):
    if structure.dropout_structure and not structure.skip_connection:  # the one thing that A1111's layout cannot say
        structure = ResidualStructure(**{**vars(structure), "dropout_structure": (*structure.dropout_structure[:-1], 0)})
    network = some_network(structure, description=text, step=step)
    network.metadata = {"base_model": "a model", "base_model_hash": "0123456789", "weight_initialization": "XavierNormal"}
    other = load(save(network, tmp_path / "a.pt", overwrite=True))
    assert_same(network, other)
    assert other.metadata == network.metadata


def test_dropout_after_the_last_layer_is_left_out_of_pt_files_since_a1111_refuses_it(tmp_path):
    network = some_network(ResidualStructure((1, 2, 1), dropout_structure=(0, 0.1, 0.2))).eval()
    path = save(network, tmp_path / "a.pt")
    assert torch.serialization.load(path, weights_only=True)["dropout_structure"] == [0, 0.1, 0]
    x = torch.randn(3, 6)
    assert torch.equal(load(path).pair(6)[0](x), network.pair(6)[0](x))


class SafeUnpickler(pickle.Unpickler):
    """Allows what A1111's safe.py allows (safe.py:40-66), and notes nothing else passes."""

    def persistent_load(self, saved):
        assert saved[0] == "storage"
        return torch.storage.TypedStorage(_internal=True)

    def find_class(self, module, name):
        allowed = {("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")}
        assert (module, name) in allowed or (module == "torch" and name in ("FloatStorage", "HalfStorage", "BFloat16Storage")), (
            name
        )
        return super().find_class(module, name)


@pytest.mark.parametrize(
    "structure",
    [
        ResidualStructure((1, 1.5, 1), "relu", layer_norm=True, dropout_structure=(0, 0.1, 0)),
        ResidualStructure((1, 2, 1), "swish", skip_connection=True, upsample_linear=True),
    ],
    ids=["plain", "skip"],
)
def test_pt_files_pass_a1111s_check_and_carry_its_fields(tmp_path, structure):
    network = some_network(structure)
    network.metadata = {"base_model": "a model", "base_model_hash": "0123456789"}
    path = save(network, tmp_path / "a.pt")
    assert not zipfile.is_zipfile(path)
    with open(path, "rb") as file:  # the old format: five pickles in a row, as safe.py:99-103 reads them
        contents = [SafeUnpickler(file).load() for _ in range(5)][3]
    assert [type(key) for key in contents][:2] == [int, int] and all(type(contents[key]) is tuple for key in (6, 8))
    fields = {key: value for key, value in contents.items() if isinstance(key, str)}
    assert fields == {
        "step": 321,
        "name": "some",
        "layer_structure": [int(m) if m == int(m) else m for m in structure.layer_structure],
        "activation_func": structure.activation,
        "is_layer_norm": structure.layer_norm,
        "weight_initialization": "Normal",
        "sd_checkpoint": "0123456789",
        "sd_checkpoint_name": "a model",
        "activate_output": False,
        "use_dropout": False,
        "dropout_structure": list(structure.dropout_structure) or [0, 0, 0],
        "last_layer_dropout": False,
        "optional_info": "a note",
    } | ({"skip_connection": True, "upsample_linear": "Linear"} if structure.skip_connection else {})


def test_one_pair_per_layer_is_refused_for_pt_and_nothing_is_written(tmp_path):
    with pytest.raises(ConfigError, match="safetensors"):
        save(some_network(widths={LAYER: 8}), tmp_path / "a.pt")
    assert list(tmp_path.iterdir()) == []


def test_every_variant_can_be_converted_and_computes_the_same(tmp_path):
    expected = load_file(GOLDEN / "expected.safetensors")
    for variant in VARIANTS:
        network = load(GOLDEN / variant)
        for suffix in files.SUFFIXES:
            if suffix == ".pt" and network.per_layer:
                continue
            converted = load(save(network, tmp_path / (Path(variant).stem + suffix)))
            assert_computes(converted, expected, Path(variant).stem + ".", 1e-5)


def test_a_file_keeps_no_hold_on_the_network_that_was_read_from_it(tmp_path):
    path = save(some_network(), tmp_path / "a.safetensors")
    network = load(path)
    before = [weight.clone() for weight in network.parameters()]
    path.write_bytes(b"\0" * path.stat().st_size)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_a_network_read_under_inference_mode_can_be_trained(tmp_path):
    for suffix in files.SUFFIXES:
        path = save(some_network(), tmp_path / f"a{suffix}")
        with torch.inference_mode():
            network = load(path)
        network.pair(6)[0](torch.randn(2, 6)).sum().backward()
        assert all(weight.grad is not None for weight in network.pair(6)[0].parameters())


def test_half_precision_networks_are_written_as_they_are_and_read_as_float32(tmp_path):
    network = some_network().to(torch.bfloat16)
    path = save(network, tmp_path / "a.safetensors")
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16}
    weight = load(path).pair(6)[0].linear[0].weight
    assert weight.dtype == torch.float32 and torch.equal(weight, network.pair(6)[0].linear[0].weight.float())


def test_a_preview_travels_in_the_header_as_a_small_jpeg(tmp_path):
    network = some_network()
    network.metadata["preview"] = preview_text(Image.new("RGBA", (900, 600), "red"))
    facts = describe(save(network, tmp_path / "a.safetensors"))
    image = Image.open(io.BytesIO(facts.preview))
    assert (image.format, image.size) == ("JPEG", (256, 171))


@pytest.mark.parametrize("preview", ["", "not base64!", "é"])
def test_a_preview_that_is_none_is_none(tmp_path, preview):
    network = some_network()
    network.metadata["preview"] = preview
    assert describe(save(network, tmp_path / "a.safetensors")).preview is None


def test_describing_a_safetensors_file_reads_its_header_alone(tmp_path):
    network = ResidualHypernetwork({2048: 2048}, ResidualStructure((1, 8, 8, 1)), initialization=None)
    names = [
        (f"2048.{part}.{name}", list(w.shape), w.numel() * 4)
        for part, f in zip("kv", network.pair(2048), strict=True)
        for name, w in f.state_dict().items()
    ]
    with safe_open(save(some_network(), tmp_path / "a.safetensors"), framework="np") as file:
        metadata = file.metadata() | {"pairs": "[[2048, 2048]]", "structure": '{"layer_structure": [1, 8, 8, 1]}'}
    header, end = {"__metadata__": metadata}, 0
    for name, shape, size in names:
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path = tmp_path / "large.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, path.stat().st_size + end)  # a hole of two gigabytes
    began = time.process_time()  # other programs do not count
    assert describe(path).keys == (2048,)
    assert time.process_time() - began < 0.5


def test_the_short_hash_is_ten_digits_of_the_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 10**6)
    assert short_hash(tmp_path / "a") == hashlib.sha256(b"abc" * 10**6).hexdigest()[:10]


def test_the_date_is_written_once_and_kept(tmp_path):
    network = load(save(some_network(), tmp_path / "a.safetensors"))
    date = network.metadata["date"]
    assert date.endswith("+00:00")
    network.metadata["date"] = "2024-01-02T03:04:05+00:00"
    assert describe(save(network, tmp_path / "b.safetensors")).metadata["date"] == "2024-01-02T03:04:05+00:00"


def test_base64_of_the_preview_is_plain():
    assert base64.b64decode(preview_text(Image.new("RGB", (8, 8))))[:2] == b"\xff\xd8"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_file_in_half_precision_is_half_as_large_and_comes_back_rounded(tmp_path, dtype):
    network = ResidualHypernetwork({64: 64, 96: 96}, ResidualStructure((1, 2, 1)), initialization="KaimingUniform")
    whole, half = save(network, tmp_path / "whole.safetensors"), save(network, tmp_path / "half.safetensors", dtype=dtype)
    assert half.stat().st_size < 0.55 * whole.stat().st_size
    found = load(half).state_dict()
    assert all(torch.equal(found[name], weight.to(dtype).float()) for name, weight in network.state_dict().items())


def test_weights_that_half_precision_cannot_hold_are_not_written(tmp_path):
    network = ResidualHypernetwork({8: 8}, ResidualStructure((1, 1)), initialization="KaimingUniform")
    next(network.parameters()).data[0] = 1e6
    with pytest.raises(TrainingFailed, match="file_precision"):
        save(network, tmp_path / "large.safetensors", dtype=torch.float16)
    assert not list(tmp_path.iterdir())
    assert float(next(load(save(network, tmp_path / "large.safetensors", dtype=torch.bfloat16)).parameters())[0, 0].detach()) == pytest.approx(1e6, rel=0.01)
