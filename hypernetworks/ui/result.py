"""The file that came out of a run: what it is, who can read it, and the same network in A1111's format."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError
from ..files import FileFacts, describe, load, save, short_hash
from ..prompt import ActiveNetwork, tag
from .markup import code, escape, file_size, note

PER_LAYER = (
    "It has a pair of networks for every attention layer. This extension reads it, in every web UI and in the standalone app; "
    "a web UI without this extension does not, and it cannot be written as A1111's .pt. For that, train with “One pair per layer” off."
)
PER_WIDTH = (
    "The .safetensors file is for this extension, in every web UI and in the standalone app. As .pt, A1111's own hypernetwork code reads it too, "
    "and so does every program that reads A1111's files."
)


def card(path: Path) -> str:
    """What is known about the file, as HTML."""
    facts = describe(path)
    rows = {
        "File": code(path),
        "Size": escape(file_size(facts.size)),
        "Hash": code(short_hash(path)),
        "Trained": escape(_trained(facts)),
        "In the prompt": code(tag(ActiveNetwork(path.stem))),
        "Who can read it": escape(PER_LAYER if facts.per_layer else PER_WIDTH),
    }
    lines = "".join(f"<dt>{label}</dt><dd>{value}</dd>" for label, value in rows.items())
    return f'<div class="hypernetworks-card"><h3>{escape(path.stem)} is ready</h3><dl>{lines}</dl></div>'


def lora_card(path: Path, notes: Sequence[str] = ()) -> str:
    """What is known about a LoRA file that was written, as HTML."""
    rows = {
        "File": code(path),
        "Size": escape(file_size(path.stat().st_size)),
        "In the prompt": code(f"<lora:{path.stem}:1>"),
        "Who can read it": "Every program that reads LoRA files. A web UI lists it after a refresh of its Lora tab.",
    }
    lines = "".join(f"<dt>{label}</dt><dd>{value}</dd>" for label, value in rows.items())
    told = "".join(note(text, "warning") for text in notes)
    return f'<div class="hypernetworks-card"><h3>{escape(path.stem)} is ready</h3><dl>{lines}</dl></div>{told}'


def _trained(facts: FileFacts) -> str:
    pictures, model = facts.metadata.get("dataset_size"), facts.metadata.get("base_model")
    return f"{facts.step:,} steps" + (f" on {pictures} pictures" if pictures else "") + (f", with the model “{model}”" if model else "")


def write_pt(path: Path, into: Path) -> Path:
    """The network in A1111's format, in a folder for downloads. Raises `ConfigError` for a network with a pair per layer."""
    if describe(path).per_layer:
        raise ConfigError(PER_LAYER)
    into.mkdir(parents=True, exist_ok=True)
    return save(load(path), into / f"{path.stem}.pt", overwrite=True)
