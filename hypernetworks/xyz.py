"""Axes for the web UIs' XYZ plot: name, strength, start, end and block weights of the hypernetworks at work, and what generators make their
weights for."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .catalog import Catalog
from .errors import HypernetworkError
from .prompt import ConditionSource, read

PREFIX = "[Hypernetwork] "
NUMBERS = {"Strength": "strength", "Start": "start", "End": "end", "Blend": "blend"}
SOURCES = {"Text": "text", "Reference": "reference", "Task": "task"}


def add_axes(module: Any, catalog: Catalog) -> None:
    """Adds our axes to `module.axis_options` (scripts/xyz_grid.py), in place of those that are there already."""
    remove_axes(module)
    axis = module.AxisOption
    module.axis_options += [
        axis(PREFIX + "Name", str, change("name"), choices=lambda: ["None", *catalog.names()]),
        *(axis(PREFIX + label, float, change(field)) for label, field in NUMBERS.items()),
        axis(PREFIX + "Block weights", str, change_blocks),
        *(axis(PREFIX + label, str, change_condition(kind)) for label, kind in SOURCES.items()),
    ]


def remove_axes(module: Any) -> None:
    """Takes ours away."""
    module.axis_options[:] = [option for option in module.axis_options if not option.label.startswith(PREFIX)]


def change(field: str) -> Callable[[Any, Any, Any], None]:
    """What a plot does to a job `p` for a value of the axis; `hosts/generation.py` reads it."""

    def apply(p: Any, value: Any, values: Any) -> None:
        p.hypernetworks_changes = {**getattr(p, "hypernetworks_changes", {}), field: value}

    return apply


def change_condition(kind: str) -> Callable[[Any, Any, Any], None]:
    """As `change`, with what generators make their weights for: a text, a reference picture's hash, or a task. Raises `HypernetworkError` for
    a value that cannot be one."""

    def apply(p: Any, value: str, values: Any) -> None:
        change("condition")(p, ConditionSource(kind, value.strip()), values)

    return apply


def change_blocks(p: Any, value: str, values: Any) -> None:
    """Block weights as in a tag, `in=0 mid=0.5 out=1`, in any order. Raises `HypernetworkError` for anything else."""
    arguments = value.replace(";", " ").split()
    if any(argument.partition("=")[0].lower() not in ("in", "mid", "out") for argument in arguments):
        raise HypernetworkError(f"Block weights cannot be {value!r}: write for example in=0 mid=0.5 out=1.")
    blocks = read(["weights", *arguments])
    changes = {"input": blocks.input, "middle": blocks.middle, "output": blocks.output}
    p.hypernetworks_changes = {**getattr(p, "hypernetworks_changes", {}), **changes}
