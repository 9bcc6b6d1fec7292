"""Hypernetwork files: safetensors with all that rebuilds the network, and the field's `.pt` files. No file's code is ever run.

The layouts are described in docs/formats.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import os
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from PIL import Image

from . import legacy
from .errors import ConfigError, FileRefused, NameRefused, NameTaken, TrainingFailed
from .headers import open_header, parsed, write_safetensors
from .residual import Key, ResidualHypernetwork, ResidualStructure
from .writing import write_atomically

FORMAT = "hypernetworks"
VERSION = 1
SUFFIXES = (".safetensors", ".pt")
_OWN_METADATA = ("format", "format_version", "kind", "pairs", "structure", "name", "description", "step")
_LONGEST_NAME = 200  # bytes; file systems take 255, suffixes need some
_FORBIDDEN = '/\\<>:"|?*#'  # "#" begins a comment in a web UI's prompt
_RESERVED = {"con", "prn", "aux", "nul", "none", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


@dataclass(frozen=True)
class FileFacts:
    """What a file says about itself. `metadata`: base_model, base_model_hash, dataset_size, settings (JSON), date (ISO), ..."""

    kind: str  # "residual"
    widths: Mapping[Key, int]
    structure: ResidualStructure
    name: str
    description: str
    step: int
    metadata: Mapping[str, str]
    size: int  # bytes

    @property
    def keys(self) -> tuple[Key, ...]:
        """Widths, or names of attention layers."""
        return tuple(self.widths)

    @property
    def per_layer(self) -> bool:
        """Whether there is one pair per attention layer instead of one per width."""
        return any(isinstance(key, str) for key in self.widths)

    @property
    def preview(self) -> bytes | None:
        """The preview as a JPEG file's bytes."""
        return preview_of(self.metadata)


def load(path: str | Path) -> ResidualHypernetwork:
    """The network in a file of any variant, float32 on the CPU, in eval mode. Raises `FileRefused`, and `UnsafeFile` for code."""
    path = Path(path)
    network = legacy.load(path) if _suffix(path) == ".pt" else _load_safetensors(path)
    return network.eval()


def describe(path: str | Path) -> FileFacts:
    """What a file says about itself: from the header alone for safetensors, after loading for `.pt`. Raises as `load` does."""
    path = Path(path)
    if _suffix(path) == ".safetensors":
        return _read_header(path)[0]
    network = legacy.load(path)
    return FileFacts(
        "residual",
        network.widths,
        network.structure,
        network.name,
        network.description,
        network.step,
        network.metadata,
        path.stat().st_size,
    )


def save(
    network: ResidualHypernetwork, path: str | Path, *, overwrite: bool = False, dtype: torch.dtype | None = None
) -> Path:
    """Writes `.safetensors` with full metadata, or `.pt` in A1111's layout; the file is there whole or not at all. `dtype` is that of
    the weights in `.safetensors`; None: the network's own.

    Raises `NameTaken` for an existing file unless it may be overwritten, `NameRefused`, `TrainingFailed` where it cannot be
    written, and `ConfigError` for a network that a `.pt` cannot hold.
    """
    path = Path(path)
    check_name(path.stem)
    if path.suffix.lower() not in SUFFIXES:
        raise NameRefused(f"A hypernetwork file ends in {' or '.join(SUFFIXES)}, and {path.name!r} does not.")
    if path.exists() and not overwrite:
        raise NameTaken(f"There is a file {path.name} already: choose another name, or allow it to be overwritten.")
    if path.suffix.lower() == ".pt":
        data = legacy.to_bytes(network)
        write_atomically(path, lambda temporary: temporary.write_bytes(data), len(data))
    else:
        write_safetensors(path, _to_safetensors(network, dtype))
    return path


def load_optimizer(path: str | Path) -> tuple[str, dict[str, Any]] | None:
    """Name and state of the optimizer that A1111 kept in `<path>.optim`; None without it or where it belongs to other weights."""
    path = Path(path)
    sidecar = path.with_name(path.name + ".optim")
    if not sidecar.is_file():
        return None
    contents = legacy.unpickle(sidecar)
    state = contents.get("optimizer_state_dict") if isinstance(contents, dict) else None
    if not isinstance(state, dict) or contents.get("hash") != short_hash(path):
        return None
    name = contents.get("optimizer_name")
    return name if isinstance(name, str) else "AdamW", state


def check_name(name: str) -> str:
    """The name, if it can be a file's name on every system and stand in a `<hypernet:name:1>` tag. Raises `NameRefused`."""
    plain = unicodedata.normalize("NFKC", name)  # look-alikes of the characters and words that count
    if not name.strip():
        raise NameRefused("A name is needed.")
    if odd := sorted({letter for letter in _FORBIDDEN if letter in name or letter in plain}):
        raise NameRefused(f"The name {name!r} cannot be used: it contains {' '.join(odd)}, which no file name or tag can hold.")
    if any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in name):
        raise NameRefused(f"The name {name!r} cannot be used: it contains an invisible character.")
    if name != name.strip() or name.startswith(".") or name.endswith("."):
        raise NameRefused(f"The name {name!r} cannot be used: it begins or ends with a dot or a space.")
    if plain.split(".")[0].strip().lower() in _RESERVED:
        raise NameRefused(f"The name {name!r} cannot be used: it is reserved, by Windows or for 'no hypernetwork'.")
    if len(name.encode()) > _LONGEST_NAME:
        raise NameRefused(f"The name is too long: {len(name.encode())} bytes, and {_LONGEST_NAME} fit.")
    return name


def short_hash(path: str | Path) -> str:
    """The first 10 hex digits of the file's sha256, as A1111 shows them."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:10]


def preview_of(metadata: Mapping[str, str]) -> bytes | None:
    """The preview in a file's metadata as a JPEG file's bytes."""
    try:
        return base64.b64decode(metadata.get("preview", ""), validate=True) or None
    except (binascii.Error, ValueError):
        return None


def preview_text(image: Image.Image, side: int = 256) -> str:
    """A picture as `metadata["preview"]` holds it: a JPEG of at most `side` pixels, base64."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


def _suffix(path: Path) -> str:
    """The suffix of a file that may be read."""
    if not path.is_file():
        raise FileRefused(f"There is no file {path}.")
    if path.suffix.lower() not in SUFFIXES:
        raise FileRefused(f"{path.name} is of another format: hypernetworks are {' and '.join(SUFFIXES)} files.")
    if path.stat().st_size == 0:
        raise FileRefused(f"{path.name} is empty: get it again.")
    if not os.access(path, os.R_OK):
        raise FileRefused(f"{path.name} cannot be read: its owner has to allow it.")
    return path.suffix.lower()


def _to_safetensors(network: ResidualHypernetwork, dtype: torch.dtype | None) -> bytes:
    tensors = {
        f"{key}.{part}.{name}": _in_precision(weight.detach().cpu().contiguous(), dtype)
        for key in network.keys
        for part, f in zip("kv", network.pair(key), strict=True)
        for name, weight in f.state_dict().items()
    }
    metadata = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), **network.metadata}
    metadata |= {
        "format": FORMAT,
        "format_version": str(VERSION),
        "kind": "residual",
        "pairs": json.dumps(list(network.widths.items())),
        "structure": json.dumps(asdict(network.structure)),
        "name": network.name,
        "description": network.description,
        "step": str(network.step),
    }
    return safetensors.torch.save(tensors, metadata)


def _in_precision(weight: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """Raises `TrainingFailed` for a weight that float16 cannot hold."""
    found = weight.to(dtype or weight.dtype)
    if not torch.equal(found.isfinite(), weight.isfinite()):
        raise TrainingFailed("The weights are too large for a file in fp16; choose float32 or bf16 as the file's precision (file_precision).")
    return found


def _load_safetensors(path: Path) -> ResidualHypernetwork:
    facts, names = _read_header(path)
    try:
        network = ResidualHypernetwork(facts.widths, facts.structure, initialization=None)
        wanted = {
            key: [
                {name: f"{key}.{part}.{name}" for name in f.state_dict()} for part, f in zip("kv", network.pair(key), strict=True)
            ]
            for key in network.keys
        }
        if odd := sorted(names ^ {name for pair in wanted.values() for part in pair for name in part.values()}):
            raise ConfigError(
                f"its weights do not fit its structure: {odd[0]} is {'not expected' if odd[0] in names else 'missing'}."
            )
        with safetensors.safe_open(path, framework="pt") as file:
            for key, pair in wanted.items():
                network.assign(key, [{name: file.get_tensor(stored) for name, stored in part.items()} for part in pair])
    except (ConfigError, safetensors.SafetensorError) as error:
        raise FileRefused(f"{path.name} cannot be used as a hypernetwork: {error}") from error
    network.name, network.description, network.step = facts.name, facts.description, facts.step
    network.metadata = dict(facts.metadata)
    return network


def _read_header(path: Path) -> tuple[FileFacts, set[str]]:
    """What the header says, and the names of the tensors; no weight is read."""
    metadata, names = open_header(path)
    if metadata.get("format") != FORMAT:
        raise FileRefused(f"{path.name} is {legacy.what_it_is(names)}.")
    if metadata.get("kind") == "generator":
        raise FileRefused(f"{path.name} is a generator, which makes weights from a condition; a residual hypernetwork is needed here.")
    if metadata.get("format_version") != str(VERSION) or metadata.get("kind") != "residual":
        raise FileRefused(
            f"{path.name} was written by a newer version of this extension: update it, or get the file in another format."
        )
    try:
        widths, structure = _pairs(metadata.get("pairs", "")), _structure(metadata.get("structure", ""))
        step = int(metadata.get("step", ""))
        if len(widths) * 4 * (len(structure.layer_structure) - 1) > len(names):
            raise ValueError("more layers than weights")
    except (ConfigError, ValueError, TypeError, RecursionError) as error:
        raise FileRefused(f"{path.name} is damaged: its header does not describe a hypernetwork ({error}).") from error
    others = {name: text for name, text in metadata.items() if name not in _OWN_METADATA}
    name, description = metadata.get("name", "") or path.stem, metadata.get("description", "")
    return FileFacts("residual", widths, structure, name, description, step, others, path.stat().st_size), names


def _pairs(text: str) -> dict[Key, int]:
    """`[[key, width], ...]` as a mapping. Raises ValueError or TypeError for anything else."""
    pairs = {}
    for key, width in parsed(text):
        if type(key) not in (int, str) or type(width) is not int:
            raise ValueError("not a list of keys and widths")
        pairs[key] = width
    return pairs


def _structure(text: str) -> ResidualStructure:
    """The structure in JSON. Raises ValueError, TypeError or `ConfigError` for anything else."""
    values = parsed(text)
    if not isinstance(values, dict):
        raise ValueError("its structure")
    kinds = {field.name: type(field.default) for field in fields(ResidualStructure)}
    for name, value in values.items():
        wanted = list if kinds.get(name) is tuple else kinds.get(name)
        if wanted is None or not isinstance(value, wanted):
            raise ValueError(f"{name} in its structure")
    return ResidualStructure(**values)
