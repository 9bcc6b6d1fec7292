"""The folder of a training run: what was asked, how it went, and all that is needed to go on.

    config.json                     the options and the model
    loss.csv                        step, loss, validation_loss, rate
    result.json                     how the run ended, and how long it took
    previews/step-000100-1.png      pictures by step
    sheet.png                       all of them as one picture
    checkpoints/step-000200.safetensors    the network as it was, a file like any other
    state.pt                        the last checkpoint's weights, optimizer and step: a run goes on from here
"""
from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .errors import FileRefused
from .files import write_atomically

COLUMNS = ("step", "loss", "validation_loss", "rate")


@dataclass(frozen=True)
class Row:
    """One line of the loss table."""

    step: int
    loss: float | None
    validation_loss: float | None
    rate: float | None


class RunFolder:
    """One run's folder, `<runs>/<name>`."""

    SHEET = "sheet.png"

    def __init__(self, runs: Path, name: str) -> None:
        self.path = runs / name

    @property
    def state_path(self) -> Path:
        """What a run goes on from."""
        return self.path / "state.pt"

    def preview_path(self, step: int, number: int) -> Path:
        """Where a preview of a step stands."""
        return self.path / "previews" / f"step-{step:06d}-{number}.png"

    def checkpoint_path(self, step: int) -> Path:
        """Where the network of a step stands."""
        return self.path / "checkpoints" / f"step-{step:06d}.safetensors"

    def begin(self, about: Mapping[str, Any], from_step: int) -> None:
        """Makes the folder and notes what was asked. Rows and previews after `from_step`, from a run that went further, are dropped."""
        for part in ("previews", "checkpoints"):
            (self.path / part).mkdir(parents=True, exist_ok=True)
        text = json.dumps(dict(about), indent=1, sort_keys=True)
        write_atomically(self.path / "config.json", lambda path: path.write_text(text, encoding="utf-8"))
        rows = [row for row in self.rows() if row.step <= from_step]
        self._write_rows(rows)
        for picture in self.previews():
            if int(picture.name.split("-")[1]) > from_step:
                picture.unlink()
        for path in (self._result_path, self.sheet_path):
            path.unlink(missing_ok=True)
        if from_step == 0:
            self.state_path.unlink(missing_ok=True)

    def about(self) -> dict[str, Any]:
        """What was asked, empty where nothing was noted."""
        file = self.path / "config.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    @property
    def _result_path(self) -> Path:
        return self.path / "result.json"

    def note_result(self, about: Mapping[str, Any]) -> None:
        """Notes how the run has ended."""
        text = json.dumps(dict(about), indent=1, sort_keys=True)
        write_atomically(self._result_path, lambda path: path.write_text(text, encoding="utf-8"))

    def result(self) -> dict[str, Any]:
        """What was noted at its end, empty before."""
        try:
            found = json.loads(self._result_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not there, or damaged from outside
            return {}
        return found if isinstance(found, dict) else {}

    def previews(self) -> list[Path]:
        """All previews, oldest first."""
        return sorted((self.path / "previews").glob("step-*.png"))

    def previews_by_place(self) -> dict[tuple[int, int], Path]:
        """All previews by (step, number of the prompt from 1)."""
        return {(int(step), int(number)): path for path in self.previews() for _, step, number in [path.stem.split("-")]}

    @property
    def sheet_path(self) -> Path:
        """Where the previews stand as one picture."""
        return self.path / self.SHEET

    def rows(self) -> list[Row]:
        """The loss table, without a line that a crash left half."""
        file = self.path / "loss.csv"
        if not file.exists():
            return []
        with file.open(newline="", encoding="utf-8") as lines:
            found = []
            for line in csv.reader(lines):
                try:
                    step, *values = line
                    found.append(Row(int(step), *(float(value) if value else None for value in values)))
                except (ValueError, TypeError):
                    continue  # the heading, or a line cut short
            return found

    def add_row(self, row: Row) -> None:
        """Appends one line to the loss table."""
        with (self.path / "loss.csv").open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(_cells(row))

    def keep_checkpoints(self, count: int) -> None:
        """Deletes all networks of steps but the newest `count`."""
        for path in sorted((self.path / "checkpoints").glob("step-*.safetensors"))[:-count]:
            path.unlink()

    def forget_after(self, step: int) -> None:
        """Drops the rows of later steps: the run has gone back."""
        self._write_rows([row for row in self.rows() if row.step <= step])

    def _write_rows(self, rows: list[Row]) -> None:
        def write(path: Path) -> None:
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([COLUMNS, *map(_cells, rows)])

        write_atomically(self.path / "loss.csv", write)

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Replaces the state that a run goes on from, whole or not at all."""
        write_atomically(self.state_path, lambda path: torch.save(dict(state), path))

    def load_state(self) -> dict[str, Any] | None:
        """The state to go on from, None where there is none. Raises `FileRefused` where it cannot be read."""
        if not self.state_path.exists():
            return None
        try:
            # torch.serialization.load, since A1111 replaces torch.load (modules/safe.py:195)
            return torch.serialization.load(self.state_path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever torch makes of a damaged file, the user's way out is the same
            raise FileRefused(f"The state of the run {self.path.name!r} cannot be read ({error}); start the run anew.") from error


def _cells(row: Row) -> list[Any]:
    return [row.step, *("" if value is None else repr(value) for value in (row.loss, row.validation_loss, row.rate))]
