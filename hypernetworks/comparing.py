"""Two runs side by side, from their folders: curves, the last previews, and the options that differ."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoint import RunFolder
from .config import TrainingConfig, options
from .errors import HypernetworkError, NotThere
from .host import Folders
from .jobs import Curve

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Seen:
    """What a run's folder says. `previews` are those of the last step that has any, by the number of their prompt."""

    name: str
    losses: Points
    validation_losses: Points
    options: Mapping[str, Any]  # those that differ from the defaults
    preview_step: int
    previews: Mapping[int, Path]
    result: Mapping[str, Any]


def run_names(folders: Folders) -> list[str]:
    """Of all runs that have a loss table, the newest first."""
    try:
        found = [(table.stat().st_mtime, table.parent.name) for table in folders.runs.glob("*/loss.csv")]
    except OSError:
        return []
    return [name for _, name in sorted(found, reverse=True)]


def look(folders: Folders, name: str) -> Seen:
    """Raises `NotThere` where there is no run of that name, `HypernetworkError` where its folder cannot be read."""
    if name not in run_names(folders):
        raise NotThere(f"There is no run named {name!r}.")
    folder = RunFolder(folders.runs, name)
    try:
        rows, asked, pictures = folder.rows(), folder.about().get("options", {}), folder.previews_by_place()
    except (OSError, ValueError, AttributeError) as error:  # damaged from outside
        raise HypernetworkError(f"The folder of the run {name!r} cannot be read: {error}.") from None
    last = max((step for step, _ in pictures), default=0)
    return Seen(
        name, _curve((row.step, row.loss) for row in rows), _curve((row.step, row.validation_loss) for row in rows),
        asked if isinstance(asked, dict) else {}, last, {number: path for (step, number), path in pictures.items() if step == last}, folder.result(),
    )  # fmt: skip


def differences(first: Seen, second: Seen) -> list[tuple[str, Any, Any]]:
    """(option, value there, value there) for every option in which they differ, in the order of the form; the default where a run says nothing."""
    known = options(TrainingConfig)
    names = [name for name in known if name in first.options or name in second.options]
    found = []
    for name in names:
        default = known[name].default
        default = list(default) if isinstance(default, tuple) else default
        values = first.options.get(name, default), second.options.get(name, default)
        if values[0] != values[1] and name != "name":
            found.append((name, *values))
    return found


def _curve(points: Any) -> Points:
    curve = Curve()
    for step, value in points:
        if value is not None:
            curve.add(step, value)
    return curve.points()
