"""The file that came out of a run: what it is, who can read it, and the same network in A1111's format."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError
from ..files import FileFacts, load, save, short_hash
from ..generator_files import GeneratorFacts
from ..library import Facts, facts_of
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
GENERATOR = (
    "It makes weights from a condition, for this extension while pictures are drawn. Exported as a LoRA file, the weights of one condition are "
    "for every program. The generator itself cannot be converted to .pt or merged."
)


def card(path: Path) -> str:
    """What is known about the file, as HTML."""
    facts = facts_of(path)
    rows = {
        "File": code(path),
        "Size": escape(file_size(facts.size)),
        "Hash": code(short_hash(path)),
        "Trained": escape(_trained(facts)),
        "In the prompt": code(tag(ActiveNetwork(path.stem))),
        **readers(facts),
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


def readers(facts: Facts) -> dict[str, str]:
    """A row of a card as HTML: where the file can be used."""
    if isinstance(facts, GeneratorFacts):
        return {"Who can use it": escape(GENERATOR)}
    return {"Who can read it": escape(PER_LAYER if facts.per_layer else PER_WIDTH)}


def can_be_pt(facts: Facts) -> bool:
    """Whether A1111's format can hold the network."""
    return isinstance(facts, FileFacts) and not facts.per_layer


def _trained(facts: Facts) -> str:
    pictures, model = facts.metadata.get("dataset_size"), facts.metadata.get("base_model")
    return f"{facts.step:,} steps" + (f" on {pictures} pictures" if pictures else "") + (f", with the model “{model}”" if model else "")


def write_pt(path: Path, into: Path) -> Path:
    """The network in A1111's format, in a folder for downloads. Raises `ConfigError` for one that it cannot hold."""
    if not can_be_pt(facts := facts_of(path)):
        raise ConfigError(GENERATOR if isinstance(facts, GeneratorFacts) else PER_LAYER)
    into.mkdir(parents=True, exist_ok=True)
    return save(load(path), into / f"{path.stem}.pt", overwrite=True)
