"""Writes the synthetic golden files in tests/golden: one per variant of docs/formats.md, small, with what each must compute.

    python tests/make_golden.py FOLDER

The files in the repository are frozen: run this only for a variant that is not there yet, and never overwrite one. It knows
nothing of the package, so that the formula stands here a second time, in plain functions. `native_*` come from A1111 itself.
"""
from __future__ import annotations

import hashlib
import json
import sys
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save, save_file
from torch.nn import functional as F

WIDTHS = (6, 8)
STRENGTH = 0.7


def weights(shapes: dict[str, tuple[int, ...]], seed: int) -> OrderedDict[str, torch.Tensor]:
    """Random weights of these shapes; gains around 1."""
    generator = torch.Generator().manual_seed(seed)
    found = OrderedDict()
    for name, shape in shapes.items():
        around = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0
        found[name] = around + 0.4 * torch.randn(shape, generator=generator)
    return found


def plain(state, x, positions, activation, norms=(), activate_output=False):
    """f(x) of A1111: `positions` of the Linears, `norms` of the LayerNorms that follow them."""
    for number, position in enumerate(positions):
        x = F.linear(x, state[f"linear.{position}.weight"].float(), state[f"linear.{position}.bias"].float())
        if activate_output or number < len(positions) - 1:
            x = activation(x)
        if norms:
            gain, bias = (state[f"linear.{norms[number]}.{part}"].float() for part in ("weight", "bias"))
            x = F.layer_norm(x, x.shape[-1:], gain, bias)
    return x


def skipping(state, x, activation, layer_norm):
    """R(x) - x of aria1th, two blocks."""
    carried = x
    for number in (0, 1):
        first = f"linear.{number}.linear"
        y = F.linear(carried, state[f"{first}.0.weight"], state[f"{first}.0.bias"])
        if layer_norm:
            y = F.layer_norm(y, y.shape[-1:], state[f"{first}.1.weight"], state[f"{first}.1.bias"])
        upsample = state.get(f"linear.{number}.upsample_layer.weight")
        if upsample is None:
            short_cut = F.interpolate(carried, size=y.shape[-1], mode="nearest-exact")
        else:
            short_cut = F.linear(carried, upsample)
        carried = short_cut + activation(y)
    return carried - x


def two_layers(width, first="linear.0", second="linear.1"):
    """Shapes of a 1-2-1 network."""
    return {
        f"{first}.weight": (2 * width, width), f"{first}.bias": (2 * width,),
        f"{second}.weight": (width, 2 * width), f"{second}.bias": (width,),
    }


def blocks(width, upsample=False, layer_norm=False):
    """Shapes of aria1th's 1-2-1."""
    shapes = {}
    for number, (inputs, outputs) in enumerate(((width, 2 * width), (2 * width, width))):
        if upsample:
            shapes[f"linear.{number}.upsample_layer.weight"] = (outputs, inputs)
        shapes |= {f"linear.{number}.linear.0.weight": (outputs, inputs), f"linear.{number}.linear.0.bias": (outputs,)}
        if layer_norm:
            shapes |= {f"linear.{number}.linear.1.weight": (outputs,), f"linear.{number}.linear.1.bias": (outputs,)}
    return shapes


def fields(**own):
    """A1111's fields, with changes."""
    return {
        "step": 1234, "name": "golden", "layer_structure": [1, 2, 1], "activation_func": "linear", "is_layer_norm": False,
        "weight_initialization": "Normal", "sd_checkpoint": "abcdef1234", "sd_checkpoint_name": "some-model",
        "activate_output": False, "use_dropout": False, "dropout_structure": [0, 0, 0], "last_layer_dropout": False,
        "optional_info": "made for a test",
    } | own


def old_names(state, x):
    """A first network, whose Linears are linear1 and linear2."""
    renamed = {name.replace("linear1", "linear.0").replace("linear2", "linear.1"): weight for name, weight in state.items()}
    return plain(renamed, x, (0, 1), lambda y: y)


def normed(width):
    """1-1.5-1 with layer norm and dropout: Linear 0, activation 1, LayerNorm 2, dropout 3, Linear 4, LayerNorm 5."""
    middle = int(width * 1.5)
    return {
        "linear.0.weight": (middle, width), "linear.0.bias": (middle,), "linear.2.weight": (middle,), "linear.2.bias": (middle,),
        "linear.4.weight": (width, middle), "linear.4.bias": (width,), "linear.5.weight": (width,), "linear.5.bias": (width,),
    }


def dropped(width):
    """1-2-2-1 with A1111's early use_dropout and last_layer_dropout: Linears at 0, 2 and 4."""
    return {
        "linear.0.weight": (2 * width, width), "linear.0.bias": (2 * width,),
        "linear.2.weight": (2 * width, 2 * width), "linear.2.bias": (2 * width,),
        "linear.4.weight": (width, 2 * width), "linear.4.bias": (width,),
    }


def prelu(width):
    """1-2-1 with PReLU, whose slope is a weight at position 1."""
    first_weight, first_bias, *second = two_layers(width, "linear.0", "linear.2").items()
    return dict([first_weight, first_bias, ("linear.1.weight", (1,)), *second])


def identity(x):
    return x


# variant -> (shapes of a width, pair type, key type, dtype, new zip serialization, fields, f(state, x))
VARIANTS = {
    "novelai": (lambda w: two_layers(w, "linear1", "linear2"), tuple, int, torch.float32, True, {}, old_names),
    "kohya": (two_layers, list, int, torch.float32, True, {}, lambda s, x: plain(s, x, (0, 1), identity)),
    "a1111_first_fields": (
        two_layers, tuple, int, torch.float32, False,
        {"step": 10, "name": "golden", "sd_checkpoint": "abcdef12", "sd_checkpoint_name": "some-model"},
        lambda s, x: plain(s, x, (0, 1), identity)),
    "a1111_use_dropout": (
        dropped, tuple, int, torch.float32, True,
        {"step": 10, "name": "golden", "layer_structure": [1, 2, 2, 1], "activation_func": None, "use_dropout": True,
         "last_layer_dropout": True},
        lambda s, x: plain(s, x, (0, 2, 4), identity)),
    "a1111_output_activated_by_default": (
        lambda w: two_layers(w, "linear.0", "linear.2"), tuple, int, torch.float32, True,
        {"step": 10, "name": "golden", "layer_structure": [1, 2, 1], "activation_func": "relu", "is_layer_norm": False},
        lambda s, x: plain(s, x, (0, 2), F.relu, activate_output=True)),
    "a1111": (
        normed, tuple, int, torch.float32, True,
        fields(layer_structure=[1, 1.5, 1], activation_func="swish", is_layer_norm=True, use_dropout=True,
               dropout_structure=[0, 0.15, 0]),
        lambda s, x: plain(s, x, (0, 4), F.hardswish, norms=(2, 5))),
    "a1111_prelu": (
        prelu, tuple, int, torch.float32, False, fields(activation_func="prelu"),
        lambda s, x: plain(s, x, (0, 2), lambda y: F.prelu(y, s["linear.1.weight"]))),
    "string_keys": (two_layers, tuple, str, torch.float32, True, fields(), lambda s, x: plain(s, x, (0, 1), identity)),
    "aria1th_skip_connection": (
        lambda w: blocks(w, layer_norm=True), tuple, int, torch.float32, True,
        fields(activation_func="swish", is_layer_norm=True, dropout_structure=[0, 0.2, 0], skip_connection=True,
               upsample_linear=None),
        lambda s, x: skipping(s, x, F.hardswish, True)),
    "aria1th_upsample_linear": (
        lambda w: blocks(w, upsample=True), tuple, int, torch.float32, True,
        fields(activation_func="elu", skip_connection=True, upsample_linear="Linear"),
        lambda s, x: skipping(s, x, F.elu, False)),
    "losalina_fp16": (
        two_layers, list, int, torch.float16, True,
        {"enable_sizes": list(WIDTHS), "layer_structure": [1, 2, 1], "activation_func": "linear", "is_layer_norm": False,
         "weight_initialization": "Normal", "use_dropout": True, "dropout_structure": [0, 0, 0.3]},
        lambda s, x: plain(s, x, (0, 1), identity)),
    "losalina_bf16_last_layer_dropout": (
        lambda w: two_layers(w, "linear.0", "linear.2"), list, int, torch.bfloat16, True,
        {"enable_sizes": list(WIDTHS), "layer_structure": [1, 2, 1], "activation_func": "relu", "is_layer_norm": False,
         "weight_initialization": "Normal", "use_dropout": True, "last_layer_dropout": True},
        lambda s, x: plain(s, x, (0, 2), F.relu, activate_output=True)),  # A1111's default for the absent field
}


def legacy_files(folder: Path) -> dict[str, torch.Tensor]:
    """Writes every `.pt` variant; gives what each must compute, under `<variant>.<width>.<x, k or v>`."""
    expected = {}
    for number, (variant, (shapes, pair, key, dtype, new_zip, own, f)) in enumerate(VARIANTS.items()):
        contents = {}
        for width in WIDTHS:
            drawn = [weights(shapes(width), 1000 * number + 10 * width + part) for part in (0, 1)]
            states = [OrderedDict((name, weight.to(dtype)) for name, weight in state.items()) for state in drawn]
            contents[key(width)] = pair(states)
            expected |= results(variant, width, states, f)
        path = folder / f"{variant}.pt"
        torch.save(contents | own, path, _use_new_zipfile_serialization=new_zip)
        if variant == "a1111":
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:10]
            state = {
                "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}},
                "param_groups": [{"lr": 0.001, "params": [0]}],
            }
            torch.save({"optimizer_name": "AdamW", "hash": digest, "optimizer_state_dict": state}, f"{path}.optim")
    return expected


def results(variant, key, states, f) -> dict[str, torch.Tensor]:
    """x and x + 0.7 f(x) for K and V."""
    width = key if isinstance(key, int) else 6
    x = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(width))
    results = {"x": x} | {part: x + STRENGTH * f(state, x) for part, state in zip("kv", states, strict=True)}
    return {f"{variant}.{key}.{name}": tensor for name, tensor in results.items()}


def own_files(folder: Path) -> dict[str, torch.Tensor]:
    """Writes the two forms of our own format, version 1."""
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    expected = {}
    for name, pairs in {"own_by_width": {6: 6, 8: 8}, "own_by_layer": {layer: 6, layer.replace("down", "up"): 6}}.items():
        tensors = {}
        for number, (key, width) in enumerate(pairs.items()):
            states = [weights(two_layers(width, "linear.0", "linear.2"), 90000 + 10 * number + part) for part in (0, 1)]
            for part, state in zip("kv", states, strict=True):
                tensors |= {f"{key}.{part}.{weight}": tensor for weight, tensor in state.items()}
            expected |= results(name, key, states, lambda s, x: plain(s, x, (0, 2), F.hardswish))
        structure = {
            "layer_structure": [1.0, 2.0, 1.0], "activation": "swish", "layer_norm": False, "dropout_structure": [],
            "activate_output": False, "last_layer_dropout": False, "skip_connection": False, "upsample_linear": False,
        }
        metadata = {
            "format": "hypernetworks", "format_version": "1", "kind": "residual", "pairs": json.dumps(list(pairs.items())),
            "structure": json.dumps(structure), "name": "golden", "description": "made for a test", "step": "1234",
            "base_model": "some-model", "base_model_hash": "abcdef1234", "dataset_size": "16",
            "settings": json.dumps({"batch_size": 4}), "date": "2024-01-02T03:04:05+00:00", "preview": "/9j/4AAQSkZJRg==",
        }
        (folder / f"{name}.safetensors").write_bytes(save(tensors, metadata))
    return expected


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.pt")):
        sys.exit(f"{folder} holds golden files already; they are frozen.")
    save_file(legacy_files(folder) | own_files(folder), folder / "expected.safetensors")
    (folder / "expected.safetensors").chmod(0o644)
    print(f"{len(list(folder.iterdir()))} files in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
