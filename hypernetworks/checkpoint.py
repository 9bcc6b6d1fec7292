"""The folder of a training run: what was asked, how it went, and all that is needed to go on.

    config.json                     the options, part by part where it was paused; the model, the versions
    manifest.json                   hashes of the pictures and captions
    loss.csv                        step, loss, validation_loss, rate
    previews/step-000100-1.png      pictures by step
    sheet.png                       all of them as one picture
    checkpoints/step-000200.safetensors    the network as it was, a file like any other
    result.json                     how the run ended, how long it took, and hashes of the safetensors that it wrote
    state.pt                        the last checkpoint's weights, optimizer and step: a run goes on from here
    replaced/                       all that, of the run that this one is to replace, until it has saved a state of its own
"""
from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .bounded_json import json_value
from .errors import FileRefused
from .legacy import asked_for
from .writing import append, clear_temporaries, make_folder, saying_why, sync, write_atomically

LARGEST_JSON = 16 << 20  # bytes; a manifest has 200 for each picture
MOST_PARTS = 400_000  # of it
LONGEST_ROW = 200  # bytes
MEMBERS = ("config.json", "manifest.json", "loss.csv", "previews", "sheet.png", "checkpoints", "tensorboard", "result.json", "state.pt")
ABOUT = {"options": dict, "parts": list, "model": dict, "surroundings": dict, "date": str, "began_from": str}  # what config.json may hold
PART = {"from_step": int, "options": dict, "pictures": str}  # what every one of its parts holds
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
        self._aside, self._moving = self.path / "replaced", self.path / "replaced.part"  # the latter while parts are moved there or back

    @property
    def state_path(self) -> Path:
        """What a run goes on from."""
        return self.path / "state.pt"

    @property
    def has_state(self) -> bool:
        """Whether there is one, be it set aside by a run that was killed."""
        return any((folder / self.state_path.name).exists() for folder in (self.path, self._aside, self._moving))

    def preview_path(self, step: int, number: int) -> Path:
        """Where a preview of a step stands."""
        return self.path / "previews" / f"step-{step:06d}-{number}.png"

    def checkpoint_path(self, step: int) -> Path:
        """Where the network of a step stands."""
        return self.path / "checkpoints" / f"step-{step:06d}.safetensors"

    def begin(self, about: Mapping[str, Any], from_step: int) -> None:
        """Makes the folder and notes what was asked. Rows, checkpoints and previews after `from_step`, from a run that went further, are dropped, and so is
        what a killed process has left half written."""
        for folder in (self.path, self.path / "previews", self.path / "checkpoints"):
            make_folder(folder)
            clear_temporaries(folder)
        self._write_json("config.json", about)
        self.forget_after(from_step)
        for picture in self.previews():
            if _step(picture) > from_step:
                picture.unlink()
        for path in (self.path / "result.json", self.sheet_path):
            path.unlink(missing_ok=True)

    def set_aside(self) -> None:
        """Makes room for a run that is to replace what there is; that can be put back until the new one has saved a state."""
        with saying_why(self._aside):
            _move_parts(self.path, self._moving)
            os.replace(self._moving, self._aside)

    def put_back(self) -> None:
        """What was set aside is here again, unless the run that was to replace it has saved a state. It may be killed at any moment and begin anew."""
        with saying_why(self._aside):
            if self._aside.exists() and not self.state_path.exists():
                for part in MEMBERS:
                    _remove(self.path / part)
                os.replace(self._aside, self._moving)
            if self._moving.exists():
                _move_parts(self._moving, self.path)
        self._forget_aside()

    def _forget_aside(self) -> None:
        for folder in (self._aside, self._moving):
            shutil.rmtree(folder, ignore_errors=True)

    def about(self) -> dict[str, Any]:
        """What was asked, empty where nothing was noted or it was damaged from outside."""
        found = self._read_json("config.json")
        whole = all(type(found[name]) is kind for name, kind in ABOUT.items() if name in found)
        return found if whole and all(map(_is_part, found.get("parts", []))) else {}

    def note_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Notes what the run is made from (see manifest.py)."""
        self._write_json("manifest.json", manifest)

    def manifest(self) -> dict[str, Any]:
        """What was noted of the pictures, empty where nothing was."""
        return self._read_json("manifest.json")

    def note_result(self, about: Mapping[str, Any]) -> None:
        """Notes how the run has ended."""
        self._write_json("result.json", about)

    def result(self) -> dict[str, Any]:
        """What was noted at its end, empty before."""
        return self._read_json("result.json")

    def _write_json(self, name: str, contents: Mapping[str, Any]) -> None:
        text = json.dumps(dict(contents), indent=1, sort_keys=True)
        write_atomically(self.path / name, lambda path: path.write_text(text, encoding="utf-8"), len(text))

    def _read_json(self, name: str) -> dict[str, Any]:
        """Empty where it is not there or was damaged from outside."""
        file = self.path / name
        try:
            found = json_value(file.read_bytes(), MOST_PARTS) if file.stat().st_size <= LARGEST_JSON else {}
        except (OSError, ValueError, RecursionError):
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
        """The loss table, without lines that a crash left half. Raises OSError where it cannot be read."""
        file = self.path / "loss.csv"
        if not file.exists():
            return []
        found = []
        with open(file, "rb") as lines:
            for line in lines:
                if len(line) > LONGEST_ROW:
                    continue
                try:
                    step, *values = line.decode("ascii").rstrip("\r\n").split(",")
                    row = Row(int(step), *(float(value) if value else None for value in values))
                except (ValueError, TypeError):
                    continue  # the heading, or a line that was damaged
                if line.endswith(b"\n"):  # what has no end may have lost digits
                    found.append(row)
        return found

    def add_row(self, row: Row) -> None:
        """Appends one line to the loss table."""
        append(self.path / "loss.csv", _lines([_cells(row)]))

    def keep_checkpoints(self, count: int, until_step: int) -> None:
        """Deletes all networks of steps up to `until_step` but the newest `count`; later ones are of a run that went further."""
        found = sorted((self.path / "checkpoints").glob("step-*.safetensors"))
        for path in [path for path in found if _step(path) <= until_step][:-count]:
            path.unlink()

    def forget_after(self, step: int) -> None:
        """Drops the rows and checkpoints of later steps: the run has gone back."""
        self._write_rows([row for row in self.rows() if row.step <= step])
        for checkpoint in (self.path / "checkpoints").glob("step-*.safetensors"):
            if _step(checkpoint) > step:
                checkpoint.unlink()

    def _write_rows(self, rows: list[Row]) -> None:
        text = _lines([COLUMNS, *map(_cells, rows)])
        write_atomically(self.path / "loss.csv", lambda path: path.write_text(text, encoding="utf-8", newline=""), len(text))

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Replaces the state that a run goes on from, whole or not at all; the loss table up to there is on the disk then, too."""
        sync(self.path / "loss.csv")
        write_atomically(self.state_path, lambda path: torch.save(dict(state), path), bytes_of(state))
        self._forget_aside()

    def forget_state(self) -> None:
        """There is nothing to go on from any more."""
        self._forget_aside()
        self.state_path.unlink(missing_ok=True)

    def load_state(self) -> dict[str, Any] | None:
        """The state to go on from, None where there is none. Raises `FileRefused` where it cannot be read."""
        if not self.state_path.exists():
            return None
        try:
            with open(self.state_path, "rb") as file:
                if "builtins.bytearray" in asked_for(file):  # torch would make one of any size
                    raise ValueError("it asks for builtins.bytearray")
            # torch.serialization.load, since A1111 replaces torch.load (modules/safe.py:195)
            state = torch.serialization.load(self.state_path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever torch makes of a damaged file, the user's way out is the same
            raise self.unusable(str(error).partition("\n")[0].rstrip(". ")) from error
        if not isinstance(state, dict) or type(state.get("step")) is not int or not {"structure", "weights", "optimizer"} <= state.keys():
            raise self.unusable("it is no state of a run")
        return state

    def unusable(self, reason: str) -> FileRefused:
        """The error for a state that nothing can go on from."""
        return FileRefused(f"The state of the run {self.path.name!r} cannot be read ({reason}); start the run anew.")


def _move_parts(source: Path, target: Path) -> None:
    make_folder(target)
    for part in MEMBERS:
        if (source / part).exists():
            os.replace(source / part, target / part)


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part)
    else:
        part.unlink(missing_ok=True)


def _is_part(part: Any) -> bool:
    return isinstance(part, dict) and all(type(part.get(name)) is kind for name, kind in PART.items())


def _cells(row: Row) -> list[Any]:
    return [row.step, *("" if value is None else repr(value) for value in (row.loss, row.validation_loss, row.rate))]


def bytes_of(state: Any) -> int:
    """How much room the tensors of a state take, in whatever containers they are."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    members = state.values() if isinstance(state, Mapping) else state if isinstance(state, (list, tuple)) else ()
    return sum(map(bytes_of, members))


def _lines(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _step(file: Path) -> int:
    """The step in a file's name; 0 where somebody has renamed it."""
    number = file.stem.split("-")[1:2]
    return int(number[0]) if number and number[0].isdecimal() else 0
