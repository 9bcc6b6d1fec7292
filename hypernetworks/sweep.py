"""A sweep: lists of values for some options become runs with telling names, and a table says how each came out.

    name = "ink"
    dataset = "pictures"
    [sweep]
    learning_rate = ["auto*0.5", "auto", "auto*2"]
    batch_size = [2, 4]

`<data>/sweeps/<name>.json` says which runs belong to it; `.md` and `.csv` beside it hold the table as it last was.
"""
from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoint import RunFolder
from .config import FOLDERS, TrainingConfig, options, read
from .errors import ConfigError, HypernetworkError, NotThere
from .files import check_name
from .host import Folders
from .writing import write_atomically

MOST = 100  # runs
LONGEST_NAME = 120  # letters of a run's name that says its values
NOT_SWEPT = ("name", *FOLDERS)
OUTCOMES = ("validation loss", "at step", "steps", "seconds", "ending")


@dataclass(frozen=True)
class Sweep:
    """`values` are those of each run, by option; `runs` their configurations, in the same order."""

    name: str
    values: tuple[Mapping[str, str], ...]
    runs: tuple[TrainingConfig, ...]


@dataclass(frozen=True)
class Outcome:
    """One line of the table. What is not known yet is None; `ending` is empty until then."""

    values: Mapping[str, str]
    run: str
    validation_loss: float | None  # the lowest after the first step
    best_step: int | None
    steps: int
    seconds: float | None
    ending: str


def make(base: Mapping[str, Any], lists: Mapping[str, Sequence[Any]]) -> Sweep:
    """Every combination of the lists' values, on top of the options in `base`. Raises `ConfigError`, and `NameRefused` without a name."""
    name = check_name(str(base.get("name", "")))
    for option, values in lists.items():
        if option in NOT_SWEPT:
            raise ConfigError(f"{option} cannot be swept: every run has the same.")
        if not isinstance(values, (list, tuple)) or not values:
            raise ConfigError(f"The sweep needs a list of values for {option}, such as [1, 2].")
    if not lists:
        raise ConfigError('The sweep has no lists: give some, such as learning_rate = ["auto*0.5", "auto"].')
    if (count := math.prod(len(values) for values in lists.values())) > MOST:
        raise ConfigError(f"The sweep would take {count:,} runs, and {MOST} are the most.")
    told, runs = [], []
    for number, values in enumerate(itertools.product(*lists.values()), 1):
        chosen = dict(zip(lists, values, strict=True))
        config = read(TrainingConfig, {**base, **chosen})
        told.append({option: _said(getattr(config, option)) for option in chosen})
        runs.append(read(TrainingConfig, {**base, **chosen, "name": _name(name, told[-1], number)}))
    if len({run.name.casefold() for run in runs}) < len(runs):
        raise ConfigError("The sweep has a value twice.")
    return Sweep(name, tuple(told), tuple(runs))


def split(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of a configuration, and its lists. Raises `ConfigError`."""
    base = dict(values)
    lists = base.pop("sweep", {})
    if not isinstance(lists, Mapping):
        raise ConfigError("sweep must hold names of options and lists of values.")
    return base, dict(lists)


def lists_from_text(text: str) -> dict[str, list[str]]:
    """From lines such as `learning_rate: auto*0.5, auto`; values that hold commas themselves are parted by semicolons. An option goes by its
    name or its label. Raises `ConfigError`."""
    labels = {option.label.casefold(): name for name, option in options(TrainingConfig).items()}
    lists: dict[str, list[str]] = {}
    for line in filter(str.strip, text.splitlines()):
        option, colon, values = line.partition(":")
        if not colon:
            raise ConfigError(f"{line.strip()!r} is no line of a sweep: it takes an option, a colon and values, such as learning_rate: auto*0.5, auto.")
        name = labels.get(option.strip().casefold(), option.strip())
        lists[name] = [value.strip() for value in values.split(";" if ";" in values else ",") if value.strip()]
    return lists


def keep(sweep: Sweep, folders: Folders) -> None:
    """Notes which runs belong to the sweep."""
    runs = [{"run": run.name, "values": dict(values)} for run, values in zip(sweep.runs, sweep.values, strict=True)]
    text = json.dumps(runs, indent=1)
    write_atomically(_folder(folders) / f"{sweep.name}.json", lambda path: path.write_text(text, encoding="utf-8"))


def names(folders: Folders) -> list[str]:
    """Of the sweeps that are known, the newest first."""
    return [path.stem for path in sorted(_folder(folders).glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)]


def outcomes(folders: Folders, name: str) -> list[Outcome]:
    """How the runs of a sweep came out, from their folders. Raises `NotThere` for a name that is not known."""
    if name not in names(folders):
        raise NotThere(f"There is no sweep named {name!r}.")
    try:
        kept = json.loads((_folder(folders) / f"{name}.json").read_text(encoding="utf-8"))
        return [_outcome(folders, check_name(one["run"]), {str(option): str(value) for option, value in one["values"].items()}) for one in kept]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:  # damaged from outside
        raise ConfigError(f"The sweep {name!r} cannot be read: {error}.") from None


def write_table(folders: Folders, name: str) -> list[Path]:
    """The table as Markdown and as CSV, in files beside the sweep's own; gives their paths."""
    found = outcomes(folders, name)
    for suffix, text in ((".md", markdown(found)), (".csv", as_csv(found))):
        write_atomically(_folder(folders) / f"{name}{suffix}", lambda path, text=text: path.write_bytes(text.encode()))
    return tables(folders, name)


def tables(folders: Folders, name: str) -> list[Path]:
    """The files that `write_table` has written so far."""
    return [path for suffix in (".md", ".csv") if (path := _folder(folders) / f"{name}{suffix}").exists()]


def table(found: Sequence[Outcome]) -> list[list[str]]:
    """Head and lines as texts: the values, then `OUTCOMES`."""
    swept = list(dict.fromkeys(option for one in found for option in one.values))
    lines = [
        [*(one.values.get(option, "") for option in swept), *map(_number, (one.validation_loss, one.best_step, one.steps, one.seconds)), one.ending]
        for one in found
    ]
    return [[*swept, *OUTCOMES], *lines]


def best(found: Sequence[Outcome]) -> int | None:
    """Which line has the lowest validation loss; None where none has one."""
    measured = [(one.validation_loss, place) for place, one in enumerate(found) if one.validation_loss is not None]
    return min(measured)[1] if measured else None


def markdown(found: Sequence[Outcome]) -> str:
    """The table; the lowest validation loss is set in bold."""
    head, *lines = table(found)
    lowest, column = best(found), len(head) - len(OUTCOMES)
    if lowest is not None:
        lines[lowest][column] = f"**{lines[lowest][column]}**"
    rows = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in line] for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def as_csv(found: Sequence[Outcome]) -> str:
    """The table with the name of each run before it."""
    head, *lines = table(found)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["run", *head], *([one.run, *line] for one, line in zip(found, lines, strict=True))])
    return text.getvalue()


def _folder(folders: Folders) -> Path:
    return folders.data / "sweeps"


def _name(base: str, values: Mapping[str, str], number: int) -> str:
    """With the values, or with its number where these make no name for a file."""
    told = " - ".join(f"{option} {value}" for option, value in values.items())
    name = f"{base} - {told}".translate(str.maketrans({"*": "x", ":": "-", ",": None} | dict.fromkeys('/\\<>"|?', "-")))
    try:
        return check_name(name if len(name) <= LONGEST_NAME else f"{base} - {number:02d}")
    except HypernetworkError:
        return check_name(f"{base} - {number:02d}")


def _outcome(folders: Folders, run: str, values: Mapping[str, str]) -> Outcome:
    folder = RunFolder(folders.runs, run)
    rows, result = folder.rows(), folder.result()
    measured = [(row.validation_loss, row.step) for row in rows if row.step and row.validation_loss is not None and math.isfinite(row.validation_loss)]
    loss, step = min(measured, default=(None, None))
    seconds = result.get("seconds")
    return Outcome(values, run, loss, step, rows[-1].step if rows else 0, seconds if isinstance(seconds, (int, float)) else None, str(result.get("ending", "")))


def _said(value: Any) -> str:
    return ", ".join(map(_said, value)) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.1f}" if value >= 10 else f"{value:.4g}"
