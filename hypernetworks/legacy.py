"""`.pt` files: what A1111's web UI and its relatives write, read without running code, and A1111's own layout written.

Every variant is described in docs/formats.md. hn:LINE cites A1111's modules/hypernetworks/hypernetwork.py.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .archives import member_count
from .errors import ConfigError, FileRefused, UnsafeFile
from .residual import ResidualHypernetwork, ResidualStructure

LARGEST = 4 * 2**30  # bytes; SDXL's widths with layers of four times the input's width need about a third of it
MOST_OPERATIONS = 100_000  # of a pickle; the largest hypernetworks need some ten thousand
LARGEST_PICKLE = 2 << 20  # bytes, without the weights; objects take many times the room of what makes them
MOST_MEMBERS = 20_000  # of a zip file; the largest hypernetworks have some thousand

_DATA_ONLY = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    *(f"torch.{kind}Storage" for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")),
}
_OLD_NAMES = {f"linear{n + 1}.{part}": f"linear.{n}.{part}" for n in (0, 1) for part in ("weight", "bias")}  # hn:100
_DROPOUT = 0.3  # A1111's share before files held a dropout structure
_FOREIGN = (
    ("the state of an optimizer; the hypernetwork is the file beside it without .optim", ("optimizer_state_dict",)),
    ("a LoRA; it belongs in the folder for LoRA files", ("lora_up", "lora_down", "lora_A", "lora_B", "hada_w", "lokr_w")),
    ("a ControlNet", ("control_model.", "controlnet_")),
    (
        "a checkpoint, a whole model",
        ("model.diffusion_model.", "cond_stage_model.", "conditioner.embedders.", "down_blocks.", "state_dict"),
    ),
    ("an autoencoder (VAE)", ("first_stage_model.", "encoder.conv_in.", "decoder.conv_in.")),
    (
        "a textual inversion embedding; it belongs in the folder for embeddings",
        ("string_to_param", "emb_params", "clip_l", "clip_g"),
    ),
)


def what_it_is(names: Iterable[object]) -> str:
    """In words, what a file is that holds things of these names and is no hypernetwork."""
    names = [name for name in names if isinstance(name, str)]
    for kind, marks in _FOREIGN:
        if any(mark in name for name in names for mark in marks):
            return f"no hypernetwork but {kind}"
    return "no hypernetwork: nothing in it is a network by width or by attention layer"


def load(path: Path) -> ResidualHypernetwork:
    """The network in a `.pt` file of any variant. Raises `FileRefused`, `UnsafeFile`."""
    contents = unpickle(path)
    if not isinstance(contents, dict):
        raise FileRefused(f"{path.name} is {what_it_is(())}.")
    try:
        pairs = {int(key): _pair(key, value) for key, value in contents.items() if _is_width(key)}
        if not pairs:
            raise FileRefused(f"{path.name} is {what_it_is(contents)}.")
        structure = _structure(contents, next(iter(pairs.values()))[0], next(iter(pairs)))
        network = ResidualHypernetwork({width: width for width in pairs}, structure, initialization=None)
        for width, states in pairs.items():
            network.assign(width, states)
    except ConfigError as error:
        raise FileRefused(f"{path.name} cannot be used as a hypernetwork: {error}") from error
    network.name = _text(contents.get("name")) or path.stem
    network.description = _text(contents.get("optional_info"))
    step = contents.get("step")
    network.step = step if type(step) is int and 0 <= step < 2**63 else 0
    known = {
        "base_model": "sd_checkpoint_name",
        "base_model_hash": "sd_checkpoint",
        "weight_initialization": "weight_initialization",
    }
    network.metadata = {ours: text for ours, theirs in known.items() if (text := _text(contents.get(theirs)))}
    return network


def to_bytes(network: ResidualHypernetwork) -> bytes:
    """A `.pt` file as A1111 writes and reads it. Raises `ConfigError` for a network that A1111's format cannot hold.

    The old serialization, because A1111's safe.py refuses the zip files of torch >= 2.1; plain dicts, because no code makes them.
    """
    if network.per_layer:
        raise ConfigError(
            "A .pt file holds one pair of networks per width, and this hypernetwork has one per attention layer: "
            "save it as .safetensors, or train with one pair per width."
        )
    contents: dict[Any, Any] = {
        width: tuple(
            {name: weight.detach().cpu().clone() for name, weight in f.state_dict().items()} for f in network.pair(width)
        )
        for width in network.keys
    }
    structure = network.structure
    dropout = [
        int(share) if share == 0 else share for share in structure.dropout_structure or [0] * len(structure.layer_structure)
    ]
    dropout[0] = 0
    if not structure.skip_connection:
        dropout[-1] = 0  # A1111 asserts it; dropout after the last layer changes no position and nothing at generation
    contents |= {
        "step": network.step,
        "name": network.name,
        "layer_structure": [int(multiple) if multiple == int(multiple) else multiple for multiple in structure.layer_structure],
        "activation_func": structure.activation,
        "is_layer_norm": structure.layer_norm,
        "weight_initialization": network.metadata.get("weight_initialization", "Normal"),
        "sd_checkpoint": network.metadata.get("base_model_hash"),
        "sd_checkpoint_name": network.metadata.get("base_model"),
        "activate_output": structure.activate_output,
        # A1111 goes by the structure; ComfyUI goes by this, and would keep dropping while it generates
        "use_dropout": False,
        "dropout_structure": dropout,
        "last_layer_dropout": structure.last_layer_dropout,
        "optional_info": network.description or None,
    }
    if structure.skip_connection:
        contents |= {"skip_connection": True, "upsample_linear": "Linear" if structure.upsample_linear else None}
    buffer = io.BytesIO()
    torch.save(contents, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def unpickle(path: Path) -> Any:
    """What a `.pt` file holds: tensors, numbers, text and containers of them, nothing that needs code.

    Raises `UnsafeFile` that names what the file asks for, and `FileRefused` for a damaged one.
    """
    if path.stat().st_size > LARGEST:
        raise FileRefused(f"{path.name} is larger than any hypernetwork ({path.stat().st_size / 2**30:.1f} GB).")
    data = path.read_bytes()
    try:
        code = sorted(_asked_for(data) - _DATA_ONLY)
        if not code:
            # not torch.load: A1111 replaces it by its own, which returns None for new zip files (safe.py:195)
            return torch.serialization.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the readers fail in every way there is
        raise FileRefused(
            f"{path.name} is damaged, incomplete or no .pt file: get it again, or in the format .safetensors."
        ) from error
    raise UnsafeFile(
        f"{path.name} was refused: reading it would run {', '.join(code[:5])}, and a hypernetwork needs no code. "
        "Ask its author for a .safetensors file."
    )


def check_archive(file: BinaryIO) -> str:
    """The member of a zip file as torch writes it in which the pickle stands. Raises ValueError for any other, and for one that would unpack
    to more than it holds."""
    if member_count(file) > MOST_MEMBERS:
        raise ValueError("more members than any network has weights")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    mains = [member for member in members if member.filename.endswith("data.pkl")]
    if len(mains) != 1 or len({member.filename for member in members}) != len(members):
        raise ValueError("not one data.pkl")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("compressed, which torch's files are not")
    if sum(member.file_size for member in members) > file.seek(0, os.SEEK_END):
        raise ValueError("unpacks to more than it holds")
    return mains[0].filename


def asked_for(file: BinaryIO) -> set[str]:
    """Names of the functions and classes that the pickle in a zip file of torch's asks for. Raises ValueError and OverflowError for one that would
    take far more memory than the file has bytes, before anything makes objects of it."""
    name, size = check_archive(file), file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive, archive.open(name) as member:
        return _globals(member.read(LARGEST_PICKLE + size // 100), 1, MOST_OPERATIONS + size // 1000)


def _asked_for(data: bytes) -> set[str]:
    """The same for the old serialization too, which begins with five pickles."""
    return asked_for(io.BytesIO(data)) if data.startswith(b"PK\x03\x04") else _globals(data[:LARGEST_PICKLE], 5, MOST_OPERATIONS)


def _globals(data: bytes, pickles: int, most_operations: int) -> set[str]:
    """Names of the functions and classes that so many pickles in a row ask for. Raises ValueError where they are cut short and ask for nothing
    that is refused.

    torch's own check refuses code too. This one comes first, names it also where torch only says "unsupported operand", and
    allows less: not, for instance, `bytearray`, which makes a tiny file fill the memory.
    """
    found: set[str] = set()
    stream, operations = io.BytesIO(data), 0
    for _ in range(pickles):
        texts: list[str] = ["?", "?"]  # the last two, which STACK_GLOBAL takes as module and name
        memo: dict[int, str] = {}
        try:
            for operation, argument, _position in pickletools.genops(stream):
                operations += 1
                if operations > most_operations:
                    raise OverflowError("too many operations")
                if operation.name in ("GLOBAL", "INST"):
                    found.add(_global(*argument.split(" ", 1)))
                elif operation.name == "STACK_GLOBAL":
                    found.add(_global(*texts))
                elif operation.name in ("EXT1", "EXT2", "EXT4"):
                    found.add(f"extension {argument}")
                elif operation.name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
                    memo[len(memo) if argument is None else argument] = texts[-1]
                elif operation.name in ("GET", "BINGET", "LONG_BINGET"):
                    texts = [texts[-1], memo.get(argument, "?")]
                elif isinstance(argument, str):
                    texts = [texts[-1], argument]
        except ValueError:
            if not found - _DATA_ONLY:
                raise
            break
    return found


def _global(module: str, name: str) -> str:
    asked = f"{'builtins' if module == '__builtin__' else module}.{name}"
    return "".join(letter if letter.isprintable() else "?" for letter in asked[:100])


def _is_width(key: object) -> bool:
    if isinstance(key, str):
        return key.isascii() and key.isdigit() and 0 < len(key) < 10
    return type(key) is int and abs(key) < 2**63


def _text(value: object) -> str:
    """A field's text. Containers are not shown: a small file can nest them to a text without end."""
    return str(value) if isinstance(value, (str, float)) or (isinstance(value, int) and abs(value) < 2**63) else ""


def _pair(key: object, value: object) -> list[dict[str, Tensor]]:
    """The weights of K and V under the names of today."""
    if (
        not isinstance(value, (list, tuple))
        or len(value) != 2
        or not all(isinstance(state, Mapping) and state for state in value)
    ):
        raise ConfigError(f"its entry {key} is not a pair of networks.")
    states = [{_OLD_NAMES.get(name, name): weight for name, weight in state.items()} for state in value]
    for state in states:
        for name, weight in state.items():
            if not isinstance(name, str) or not _is_whole(weight):
                raise ConfigError(f"its entry {key} holds something else than weights.")
    return states


def _is_whole(weight: object) -> bool:
    """Whether it is a tensor that has all the values that it claims; a stride of 0 would claim terabytes."""
    if type(weight) not in (Tensor, torch.nn.Parameter) or weight.layout != torch.strided or weight.device.type != "cpu":
        return False
    return weight.numel() * weight.element_size() <= weight.untyped_storage().nbytes()


def _structure(contents: Mapping[Any, Any], state: Mapping[str, Tensor], width: int) -> ResidualStructure:
    """The structure by one network's weights, and by the fields where weights leave no trace. Defaults as in hn:249-257."""
    activation = contents.get("activation_func")
    if not isinstance(activation, (str, type(None))):
        raise ConfigError("its activation_func is not a name.")
    skip_connection = any(name.startswith("linear.0.linear.") for name in state)
    linears, layer_norm = _layers(state, skip_connection)
    weights = [state[name] for name in linears.values()]
    if weights[0].shape[1] != width or weights[-1].shape[0] != width:
        raise ConfigError(
            f"its networks for width {width} lead from width {weights[0].shape[1]} to width {weights[-1].shape[0]}."
        )
    multiples = _multiples(contents.get("layer_structure", (1, 2, 1)), width, [weight.shape[0] for weight in weights])
    dropout = _stated_dropout(contents, len(multiples))
    if not skip_connection:
        gap = (activation or "linear").lower() != "linear"
        dropout = _dropout_by_position(list(linears), dropout, 1 + gap + layer_norm)
    return ResidualStructure(
        layer_structure=multiples,
        activation=activation or "linear",
        layer_norm=layer_norm,
        dropout_structure=tuple(dropout),
        activate_output=bool(contents.get("activate_output", True)),
        last_layer_dropout=bool(contents.get("last_layer_dropout", False)),
        skip_connection=skip_connection,
        upsample_linear=skip_connection and "linear.0.upsample_layer.weight" in state,
    )


def _layers(state: Mapping[str, Tensor], skip_connection: bool) -> tuple[dict[int, str], bool]:
    """Position -> name of each Linear's weight, in order, and whether LayerNorms (one-dimensional, with a bias) follow them."""
    linears, layer_norm = {}, False
    for name, weight in state.items():
        words = name.split(".")
        if words[0] != "linear" or not words[1:2] or not (words[1].isascii() and words[1].isdigit() and len(words[1]) < 6):
            raise ConfigError(f"{name} is a weight of no known variant.")
        if weight.ndim == 2 and words[2:] == (["linear", "0", "weight"] if skip_connection else ["weight"]):
            linears[int(words[1])] = name
        if weight.ndim == 1 and words[-1] == "bias" and name[: -len("bias")] + "weight" in state:
            layer_norm |= state[name[: -len("bias")] + "weight"].ndim == 1
    if not linears:
        raise ConfigError("it has no linear layer.")
    return dict(sorted(linears.items())), layer_norm


def _multiples(stated: object, width: int, outputs: Sequence[int]) -> tuple[float, ...]:
    """The stated layer structure if it gives these widths, else one that does, also after A1111's rounding down."""
    if isinstance(stated, (list, tuple)) and all(type(multiple) in (int, float) and 0 < multiple < 10**6 for multiple in stated):
        if [int(width * multiple) for multiple in stated] == [width, *outputs]:
            return tuple(stated)
    multiples = [1.0]
    for output in outputs:
        multiple = output / width
        while int(width * multiple) < output:
            multiple = math.nextafter(multiple, math.inf)
        multiples.append(multiple)
    return tuple(multiples)


def _stated_dropout(contents: Mapping[Any, Any], length: int) -> list[float]:
    """The file's dropout structure, or the one that A1111 or losalina derived from other fields before files held it."""
    stated = contents.get("dropout_structure")
    if isinstance(stated, (list, tuple)) and all(isinstance(share, (int, float)) for share in stated):
        return list(stated) or [0.0] * length
    dropout = [0.0] * length
    if "enable_sizes" in contents:  # losalina
        dropout[-1] = _DROPOUT if contents.get("last_layer_dropout") else 0.0
    elif contents.get("use_dropout"):
        dropout[1:-2] = [_DROPOUT] * max(length - 3, 0)
        dropout[-2] = _DROPOUT if contents.get("last_layer_dropout") and length > 2 else 0.0
    return dropout


def _dropout_by_position(linears: Sequence[int], stated: Sequence[float], modules: int) -> list[float]:
    """Dropout is where positions leave room for it, whatever the fields say: weights at other positions could not be loaded.

    `modules` counts what else stands from one Linear to the next: the Linear itself, an activation, a LayerNorm.
    """
    if len(stated) != len(linears) + 1:
        raise ConfigError(f"its dropout_structure has {len(stated)} numbers for {len(linears)} layers.")
    dropout = [0.0, *stated[1:]]
    for number, (here, following) in enumerate(zip(linears, linears[1:], strict=False), start=1):
        room = following - here - modules
        if room not in (0, 1):
            raise ConfigError(f"linear.{here} and linear.{following} are not where its activation and layer norm would put them.")
        dropout[number] = (stated[number] or _DROPOUT) if room else 0.0
    return dropout
