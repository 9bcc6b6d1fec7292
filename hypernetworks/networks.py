"""A new network for a model, and what its file says of how it came to be."""
from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from .attention import network_widths
from .config import FOLDERS, TrainingConfig, plain
from .errors import ConfigError
from .files import FileFacts, preview_text
from .host import ModelFacts
from .legacy import LARGEST
from .residual import ResidualHypernetwork, ResidualStructure


def new_network(unet: nn.Module, config: TrainingConfig) -> ResidualHypernetwork:
    """An untrained residual hypernetwork whose widths are the model's. Raises `ConfigError` where it would be too large for a file."""
    structure = ResidualStructure(
        layer_structure=config.layer_structure,
        activation=config.activation,
        layer_norm=config.layer_norm,
        dropout_structure=config.dropout_structure,
        activate_output=config.activate_output,
        skip_connection=config.skip_connection,
        upsample_linear=config.upsample_linear,
    )
    if not config.per_layer and set(config.blocks) != {"input", "middle", "output"}:
        raise ConfigError("Blocks (blocks) can be chosen with one pair per layer (per_layer) only: a pair per width serves all blocks.")
    widths = filtered(network_widths(unet, config.target_layers, config.per_layer, config.blocks), config.layer_filter)
    size = _size(widths.values(), config.layer_structure)
    if size > LARGEST:
        raise ConfigError(
            f"A network of layer structure {', '.join(f'{part:g}' for part in config.layer_structure)} would take {size / 1e9:.1f} GB here, "
            f"and {LARGEST / 1e9:.1f} GB are the most; choose a narrower structure or fewer layers."
        )
    network = ResidualHypernetwork(widths, structure, initialization=config.weight_initialization, seed=config.seed)
    network.name, network.description = config.name, config.description
    return network


def filtered(widths: Mapping[Any, int], parts: Sequence[str]) -> dict[Any, int]:
    """The pairs (a layer's name or a width -> width) whose width is one of these numbers, or whose name has one of these parts; all where there
    are none. Raises `ConfigError` for a part that fits no pair."""
    chosen = {part: [key for key, width in widths.items() if part == str(width) or (isinstance(key, str) and part in key and not part.isdecimal())] for part in parts}
    for part, keys in chosen.items():
        if not keys:
            known = ", ".join(map(str, sorted(set(widths.values()))))
            raise ConfigError(f"Only these layers (layer_filter) cannot be {part!r}: no pair has that in its name, and the widths are {known}.")
    return {key: width for key, width in widths.items() if not parts or any(key in keys for keys in chosen.values())}


def _size(widths: Iterable[int], layer_structure: Sequence[float]) -> int:
    """Bytes of the weight matrices: float32, K and V of every pair."""
    return sum(8 * int(width * a) * int(width * b) for width in widths for a, b in itertools.pairwise(layer_structure))


def outline(network: ResidualHypernetwork) -> dict[str, Any]:
    """What two networks must share for one to take the other's weights."""
    return {"widths": {str(key): width for key, width in network.widths.items()}, "structure": json.dumps(asdict(network.structure))}


def acts_on_uncond(network: ResidualHypernetwork) -> bool:
    """Whether the negative prompt's rows are to be changed too, unless a user says otherwise: always, but for a network whose file says that
    it never saw an empty caption. Guidance then pulls towards the style instead of cancelling what both sides share of it."""
    return network.metadata.get("uncond") != "no"


def training_metadata(config: TrainingConfig, model: ModelFacts, pictures: int, preview: Path | None, date: str = "") -> dict[str, str]:
    """Strings for the file's header: the base model, how it was trained, when (`date` in ISO 8601; empty: now), and a small picture."""
    metadata = {
        "base_model": model.name,
        "base_model_hash": model.hash,
        "base_model_family": model.family,
        "prediction_type": model.prediction_type,
        "vae": model.vae,
        "clip_skip": str(model.clip_skip),
        "weight_initialization": config.weight_initialization,
        "dataset_size": str(pictures),
        "settings": json.dumps(plain(config) | _without_places(config)),
        "uncond": "yes" if config.caption_dropout > 0 else "no",
        "date": date or datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    if preview is not None:
        with Image.open(preview) as picture:
            metadata["preview"] = preview_text(picture)
    return metadata


def steps_done(facts: FileFacts) -> int:
    """How far the run went that a file came out of, which may hold the weights of an earlier step (keep_best)."""
    last = facts.metadata.get("last_step", "")
    return int(last) if last.isascii() and last.isdecimal() and len(last) < 12 else facts.step


def _without_places(config: TrainingConfig) -> dict[str, str]:
    """The names of folders without where they lie: files are given away."""
    return {name: Path(folder).name for name in FOLDERS if (folder := getattr(config, name))}
