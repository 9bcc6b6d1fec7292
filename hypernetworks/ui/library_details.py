"""One network of the library as the page shows it: what its file says, how it was trained, and how its loss went."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..config import TrainingConfig, options, said, shortened
from ..errors import HypernetworkError
from ..files import FileFacts
from ..generator_files import GeneratorFacts
from ..host import Folders
from ..jobs import Curve
from ..library import Details, Entry
from ..prompt import ActiveNetwork, tag
from .library_table import date_of, thumbnail
from .markup import code, escape, file_size, note, plural
from .progress import chart
from .result import readers

SIDE = 256  # pixels of the picture, which the style sheet shows at 128: some screens have pixels to spare
LONGEST = 300  # letters of a value that is shown
MOST_SETTINGS = 80
CONDITIONS = {"text": "a text", "image": "a reference picture", "task": "a task"}


def panel(details: Details) -> str:
    """Card, settings and chart as HTML."""
    return f"{_card(details)}{_settings(details.settings)}{_chart(details)}"


def can_be_resumed(entry: Entry, folders: Folders) -> bool:
    """Whether training can go on with the file: it writes to, and goes on from, the folder of networks itself."""
    return entry.kind in ("per layer", "per width", "generator") and entry.path == folders.networks / f"{entry.path.stem}.safetensors"


def _card(details: Details) -> str:
    entry = details.entry
    source = thumbnail(details.preview, SIDE)
    image = f'<img src="{source}" alt="Preview of {escape(entry.name)}">' if source else ""
    return (
        f'<div class="hypernetworks-card hypernetworks-details" data-opened="{escape(entry.name)}"><h3>{escape(entry.name)}</h3>{note(entry.problem)}'
        f'<div class="hypernetworks-about">{image}{_list(_file_rows(details))}</div>{_list(_network_rows(details))}</div>'
    )


def _list(rows: Mapping[str, str]) -> str:
    lines = "".join(f"<dt>{label}</dt><dd>{value}</dd>" for label, value in rows.items() if value)
    return f"<dl>{lines}</dl>" if lines else ""


def _file_rows(details: Details) -> dict[str, str]:
    entry = details.entry
    beside = [path.name for path in details.files if path != entry.path]
    return {
        "File": code(entry.path),
        "With it": escape(", ".join(beside)),
        "Size": escape(file_size(entry.size)),
        "Hash": code(details.hash) if details.hash else "",
        "Date": date_of(entry.date),
    }


def _network_rows(details: Details) -> dict[str, str]:
    facts = details.facts
    if facts is None:
        return {}
    if isinstance(facts, GeneratorFacts):
        return _generator_rows(details, facts)
    return {
        "Kind": f"{len(facts.widths):,} pairs of networks, {details.entry.kind}",
        "Widths": ", ".join(map(str, details.entry.widths)),
        "Structure": escape(_structure(facts)),
        "Trained": _trained(details),
        "Merged": _merged(facts.metadata),
        "In the prompt": _tag(details.entry.name),
        **readers(facts),
    }


def _generator_rows(details: Details, facts: GeneratorFacts) -> dict[str, str]:
    about = facts.structure
    return {
        "Kind": f"generator of low-rank weights, rank {about.rank}",
        "Makes them from": _either([CONDITIONS[kind] for kind in about.conditions]),
        "Tasks": escape(shortened(", ".join(about.tasks), LONGEST)),
        "For": f"{plural(len(facts.layers), 'projection')} ({', '.join(about.projections)} of {', '.join(about.target_layers)})",
        "Structure": f"decoder {about.decoder} · latents of {about.embedding_dim:,} · hidden layers of {about.hidden_dim:,}",
        "Trained": _trained(details),
        "In the prompt": _tag(details.entry.name),
        **readers(facts),
    }


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _structure(facts: FileFacts) -> str:
    structure = facts.structure
    words = [", ".join(f"{multiple:g}" for multiple in structure.layer_structure), structure.activation]
    words += ["layer norm"] * structure.layer_norm + ["skip connections"] * structure.skip_connection + ["dropout"] * bool(structure.dropout_structure)
    return " · ".join(words)


def _trained(details: Details) -> str:
    facts = details.facts
    model, pictures = facts.metadata.get("base_model", ""), facts.metadata.get("dataset_size", "")
    words = [f"{facts.step:,} steps"] + [f"{shortened(pictures, 20)} pictures"] * bool(pictures) + [f"with {shortened(model, 80)}"] * bool(model)
    if facts.name and facts.name != details.entry.path.stem:
        words.append(f"under the name {shortened(facts.name, 80)}")
    return escape(", ".join(words))


def _merged(metadata: Mapping[str, str]) -> str:
    """From what it was merged, as its file says: "average of ink (0.7), fog (0.3)"."""
    try:
        parts = ", ".join(f"{part['name']} ({part['weight']:g})" for part in json.loads(metadata.get("merged_from", "[]")))
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
    return escape(shortened(f"{metadata.get('merged_by', 'merged')} of {parts}", LONGEST)) if parts else ""


def _tag(name: str) -> str:
    try:
        return code(tag(ActiveNetwork(name)))
    except HypernetworkError as error:
        return escape(str(error))


def _settings(settings: Mapping[str, Any]) -> str:
    known = options(TrainingConfig)
    lines = "".join(
        f"<dt>{escape(known[name].label if name in known else shortened(str(name), 60))}</dt><dd>{escape(shortened(said(value), LONGEST))}</dd>"
        for name, value in list(settings.items())[:MOST_SETTINGS]
    )
    if not lines:
        return ""
    return f'<details class="hypernetworks-card"><summary>Training options that were changed</summary><dl>{lines}</dl></details>'


def _chart(details: Details) -> str:
    losses, validation = Curve(), Curve()
    for row in details.losses:
        if row.loss is not None:
            losses.add(row.step, row.loss)
        if row.validation_loss is not None:
            validation.add(row.step, row.validation_loss)
    return chart(losses.points(), validation.points()) if len(losses.points()) > 1 else ""
