"""Starting points: sets of options that go together, under names that say what they are for."""
from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ConfigError


@dataclass(frozen=True)
class Preset:
    """`values` are options of `TrainingConfig` that differ from the defaults; `help` is one sentence on what it is for."""

    help: str
    values: dict[str, Any] = field(default_factory=dict)


PRESETS = {
    "Style": Preset(
        "A manner of drawing or painting, from 10 to 100 pictures of different things in that manner.",
        {"caption_dropout": 0.0, "max_steps": 800, "ema_decay": 0.99, "ema_save_both": False},
    ),
    "Subject": Preset(
        "One person, animal or thing, from 5 to 30 pictures of it in different places.",
        {"target_layers": ("attn2",), "caption_template": "a picture of [name], [filewords]", "caption_dropout": 0.05},
    ),
    "Quick try": Preset(
        "Is it going anywhere? A short run with frequent previews, to be followed by a longer one.",
        {"caption_dropout": 0.0, "max_steps": 200, "preview_every": 50, "validation_every": 25},
    ),
    "Low memory": Preset(
        "For graphics cards of 6 GB and less: one picture at a time, cross-attention alone, and time spent to save memory. Learns textures less well.",
        {
            "target_layers": ("attn2",), "batch_size": 1, "gradient_accumulation": 4, "gradient_checkpointing": True, "caption_dropout": 0.0,
            "max_steps": 800,
        },
    ),
    "A1111-compatible": Preset(
        "For every web UI's own hypernetwork code too: one pair of networks per width, written as .pt as well. Learns textures less well.",
        {"per_layer": False, "also_pt": True},
    ),
    "Family of styles": Preset(
        "A generator: one network for many styles, each in a folder of its own within the folder of pictures.",
        {"kind": "generator", "max_steps": 5000, "batch_size": 8, "caption_dropout": 0.05},
    ),
}


def preset(name: str) -> dict[str, Any]:
    """The options of the preset of that name that ships, as `find` gives them."""
    return find(name, PRESETS)


def find(name: str, presets: Mapping[str, Preset]) -> dict[str, Any]:
    """The options of the preset of that name, in any case. Raises `ConfigError` that names the nearest one."""
    known = {known.lower(): known for known in presets}
    if name.lower() not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean {known[near[0]]!r}?" if near else f"there are {', '.join(presets)}."
        raise ConfigError(f"There is no preset {name!r}: {hint}")
    return dict(presets[known[name.lower()]].values)
