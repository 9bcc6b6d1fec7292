"""Files of generating hypernetworks: safetensors with all that rebuilds the network. The layout is described in
docs/formats.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from . import legacy
from .decoders import Layer
from .errors import ConfigError, FileRefused, NameRefused, NameTaken, NotBound, TrainingFailed
from .files import FORMAT, VERSION, check_name, preview_of
from .generator import Hypernetwork, HypernetworkStructure
from .headers import open_header, parsed, read_metadata, write_safetensors

KIND = "generator"
_OWN_METADATA = ("format", "format_version", "kind", "architecture", "layers", "name", "description", "step")
_LARGEST_WIDTH = 2**20


@dataclass(frozen=True)
class GeneratorFacts:
    """What a file says about itself. `metadata`: base_model, base_model_hash, condition_encoder, settings (JSON), ..."""

    structure: HypernetworkStructure
    layers: tuple[Layer, ...]
    name: str
    description: str
    step: int
    metadata: Mapping[str, str]
    size: int  # bytes
    kind: str = KIND

    @property
    def preview(self) -> bytes | None:
        """The preview as a JPEG file's bytes."""
        return preview_of(self.metadata)


def save_generator(
    hypernetwork: Hypernetwork, path: str | Path, *, overwrite: bool = False, dtype: torch.dtype = torch.float32
) -> Path:
    """Writes `.safetensors`; the file is there whole or not at all. float16 halves it, float32 comes back bit by bit.

    Raises `NotBound` before there are weights, `NameTaken` for an existing file unless it may be overwritten, `NameRefused`, and
    `TrainingFailed` where it cannot be written or a weight is not finite.
    """
    path = Path(path)
    check_name(path.stem)
    if path.suffix.lower() != ".safetensors":
        raise NameRefused(f"A generator's file ends in .safetensors, and {path.name!r} does not.")
    if not hypernetwork.is_bound:
        raise NotBound("This hypernetwork has met no model yet, so there is nothing to save: call bind(unet), or train it.")
    if path.exists() and not overwrite:
        raise NameTaken(f"There is a file {path.name} already: choose another name, or allow it to be overwritten.")
    tensors = {
        _stored_name(name): weight.detach().cpu().to(dtype).contiguous() for name, weight in hypernetwork.state_dict().items()
    }
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise TrainingFailed(f"{path.name} was not saved: the generator holds numbers that are not finite.")
    data = safetensors.torch.save(tensors, _metadata(hypernetwork))
    write_safetensors(path, data)
    return path


def load_generator(path: str | Path) -> Hypernetwork:
    """The generator in a file, bound to the layers it was trained for, float32 on the CPU, in eval mode. Raises `FileRefused`."""
    path = Path(path)
    facts, names = _read_header(path)
    try:
        hypernetwork = _empty(facts)
        shapes = {name: tuple(weight.shape) for name, weight in hypernetwork.state_dict().items()}
        if odd := sorted(names ^ {_stored_name(name) for name in shapes}):
            raise ConfigError(
                f"its weights do not fit its architecture: {odd[0]} is {'not expected' if odd[0] in names else 'missing'}."
            )
        with safetensors.safe_open(path, framework="pt") as file:
            state = {}
            for name, shape in shapes.items():
                stored = file.get_slice(_stored_name(name))
                if tuple(stored.get_shape()) != shape:
                    raise ConfigError(f"{_stored_name(name)} has the shape {stored.get_shape()} where {list(shape)} is expected.")
                state[name] = file.get_tensor(_stored_name(name))
    except (ConfigError, safetensors.SafetensorError, OSError) as error:
        raise FileRefused(f"{path.name} cannot be used as a generator: {error}") from error
    if odd := [name for name, weight in state.items() if not weight.is_floating_point()]:
        raise FileRefused(f"{path.name} cannot be used as a generator: {_stored_name(odd[0])} holds no weights.")
    # Forge loads under inference_mode, and weights made in it could never be trained
    with torch.inference_mode(False), torch.no_grad():
        state = {name: weight.to(torch.float32, copy=True).contiguous() for name, weight in state.items()}
        hypernetwork.load_state_dict(state, assign=True)
    return hypernetwork.eval()


def is_generator(path: str | Path) -> bool:
    """Whether the file says that it is a generator's; nothing else of it is looked at."""
    try:
        return Path(path).suffix.lower() == ".safetensors" and (read_metadata(path) or {}).get("kind") == KIND
    except OSError:
        return False


def describe_generator(path: str | Path) -> GeneratorFacts:
    """What a file says about itself, from the header alone. Raises `FileRefused`."""
    return _read_header(Path(path))[0]


def _empty(facts: GeneratorFacts) -> Hypernetwork:
    hypernetwork = Hypernetwork(**asdict(facts.structure))
    hypernetwork.build(facts.layers, facts.structure.text_width)
    hypernetwork.name, hypernetwork.description, hypernetwork.step = facts.name, facts.description, facts.step
    hypernetwork.metadata = dict(facts.metadata)
    return hypernetwork


def _stored_name(name: str) -> str:
    """A weight's name in the file: names of layers have their dots back."""
    return name.replace("/", ".")


def _metadata(hypernetwork: Hypernetwork) -> dict[str, str]:
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **hypernetwork.metadata,
        "format": FORMAT,
        "format_version": str(VERSION),
        "kind": KIND,
        "architecture": json.dumps(asdict(hypernetwork.structure)),
        "layers": json.dumps(hypernetwork.layers),
        "name": hypernetwork.name,
        "description": hypernetwork.description,
        "step": str(hypernetwork.step),
    }


def _read_header(path: Path) -> tuple[GeneratorFacts, set[str]]:
    """What the header says, and the names of the tensors; no weight is read."""
    if not path.is_file():
        raise FileRefused(f"There is no file {path}.")
    metadata, names = open_header(path)
    if metadata.get("format") != FORMAT:
        raise FileRefused(f"{path.name} is {legacy.what_it_is(names)}.")
    if metadata.get("kind") == "residual":
        raise FileRefused(f"{path.name} is a residual hypernetwork; it generates no weights.")
    if metadata.get("format_version") != str(VERSION) or metadata.get("kind") != KIND:
        raise FileRefused(f"{path.name} was written by a newer version of this extension: update it.")
    try:
        structure, layers = _structure(metadata.get("architecture", "")), _layers(metadata.get("layers", ""))
        step = int(metadata.get("step", ""))
        if 2 * len(layers) + 2 * structure.depth > len(names):
            raise ValueError("more layers than weights")
    except (ConfigError, ValueError, TypeError, RecursionError) as error:
        raise FileRefused(f"{path.name} is damaged: its header does not describe a generator ({error}).") from error
    others = {name: text for name, text in metadata.items() if name not in _OWN_METADATA}
    name, description = metadata.get("name", "") or path.stem, metadata.get("description", "")
    return GeneratorFacts(structure, layers, name, description, step, others, path.stat().st_size), names


def _structure(text: str) -> HypernetworkStructure:
    """Raises ValueError, TypeError or `ConfigError` for anything but a structure in JSON."""
    values = parsed(text)
    if not isinstance(values, dict):
        raise ValueError("its architecture")
    return HypernetworkStructure(**values)


def _layers(text: str) -> tuple[Layer, ...]:
    """Raises ValueError or TypeError for anything but `[[name, in, out], ...]`."""
    layers = [Layer(*entry) for entry in parsed(text)]
    widths = [width for layer in layers for width in layer[1:]]
    if not all(isinstance(layer.name, str) for layer in layers) or len({layer.name for layer in layers}) < len(layers):
        raise ValueError("not a list of layers")
    if not layers or not all(type(width) is int and 0 < width <= _LARGEST_WIDTH for width in widths):
        raise ValueError("not the widths of layers")
    return tuple(layers)
