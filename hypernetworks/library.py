"""The networks of a folder as a library: what there is, what each file says, and what can be done with it.

A name stands for all files of its stem in one folder: the network, the same in the other format, and what web UIs keep beside it
(`sidecars.py`); they are renamed and deleted together. The run folder of a stem belongs to the file that the stem alone leads to.
Nothing is read or written outside the catalog's folder and the data folder.
"""
from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from . import merging
from .catalog import Catalog, File
from .checkpoint import Row, RunFolder
from .errors import ConfigError, FileRefused, HypernetworkError, NameTaken
from .files import FORMAT, SUFFIXES, VERSION, FileFacts, check_name, describe, load, save, short_hash
from .generator_files import KIND as GENERATOR
from .generator_files import GeneratorFacts, describe_generator, is_generator
from .headers import change_metadata, parsed, read_metadata
from .host import Folders
from .residual import ResidualHypernetwork
from .sidecars import belonging, change_card, family, move, picture_beside, read_card

LONGEST_NOTES = 20_000  # letters; a list of files reads them with everything else in the header
LARGEST_PICTURE = 20_000_000  # bytes

Facts = FileFacts | GeneratorFacts


class Entry(NamedTuple):
    """One line of a table. What a `.pt` says of itself is not known before its details were asked for: it has to be loaded for that."""

    name: str
    path: Path
    size: int  # bytes
    date: float  # seconds since 1970: when it was made, as the file says, else when it was written
    kind: str = ""  # "per layer", "per width", "generator"; empty where not known
    widths: tuple[int, ...] = ()
    makes: str = ""  # what a generator makes: "attn1, attn2, rank 4"
    step: int | None = None
    base_model: str = ""
    problem: str = ""  # a sentence about a file that cannot be used


@dataclass(frozen=True)
class Details:
    """All that is known about one network. `facts` is None for a file that cannot be used; then `entry.problem` says why."""

    entry: Entry
    facts: Facts | None
    hash: str
    notes: str
    settings: Mapping[str, Any]  # the training options that differ from the defaults, as the file says
    preview: bytes | None  # a picture file
    losses: tuple[Row, ...]
    files: tuple[Path, ...]  # all that goes where the network goes
    run: Path | None  # the run's folder


class Library:
    """What a page shows of a catalog's folder and does in it. Every method may be called from any thread."""

    def __init__(self, catalog: Catalog, folders: Folders) -> None:
        self.catalog, self.folders = catalog, folders
        self._listed: Mapping[str, File] = {}
        self._entries: dict[str, tuple[File, Entry]] = {}

    def entries(self) -> list[Entry]:
        """One entry per name, from another look at the folder. A damaged file is an entry with its sentence.

        Of a safetensors file only the metadata is read, and that once while neither its time nor its size changes.
        """
        self.catalog.refresh()
        files = self.catalog.files()
        if files is not self._listed:
            known = self._entries
            self._entries = {name: _kept(known.get(name), file) or (file, _entry(name, file)) for name, file in files.items()}
            self._listed = files
        return [entry for _, entry in self._entries.values()]

    def details(self, name: str) -> Details:
        """What is known about the network of that name. Raises `HypernetworkError` only where there is none of that name."""
        path = self._path(name)
        file, (facts, problem) = _file(path), _read(path)
        entry = _unread(name, file, problem) if facts is None else _known(name, file, facts)
        if name in self._entries:
            self._entries[name] = file, entry  # now a .pt has its line in the table too
        run = self._run(path)
        return Details(
            entry, facts, _hash(path), _notes(path, facts), settings({} if facts is None else facts.metadata), self.preview(path),
            _losses(run), tuple(belonging(path)), run.path if run else None,
        )  # fmt: skip

    def preview(self, path: Path) -> bytes | None:
        """The picture file that a card shows for the network's file, else the one within it, read without loading a `.pt`."""
        source = picture_beside(path) or path
        try:
            if source != path:
                return source.read_bytes() if source.stat().st_size <= LARGEST_PICTURE else None
            metadata = read_metadata(path) if path.suffix.lower() == ".safetensors" else None
            return base64.b64decode((metadata or {}).get("preview", ""), validate=True) or None
        except (OSError, binascii.Error, ValueError):
            return None

    def notes(self, name: str) -> str:
        """What somebody wrote about the network: its description, for a `.pt` the notes of a web UI's card if there are any."""
        path = self._path(name)
        return _notes(path, _read(path)[0])

    def set_notes(self, name: str, text: str) -> None:
        """Keeps notes in the file's description, or beside a `.pt` as a web UI's card keeps them.

        A safetensors file gets another hash by this; its weights stay as they are. Raises `ConfigError` for a text that is too long,
        `FileRefused` for a damaged file, `TrainingFailed` where nothing can be written.
        """
        if len(text) > LONGEST_NOTES:
            raise ConfigError(f"Notes can have {LONGEST_NOTES:,} letters, and these have {len(text):,}.")
        path = self._path(name)
        if path.suffix.lower() == ".pt":
            change_card(path, notes=text)
            return
        facts_of(path)  # refuses what is no hypernetwork and so not ours to change
        change_metadata(path, {"description": text})

    def rename(self, name: str, new: str) -> str:
        """Gives all files of the network and its run folder another name within their folder; gives the name in the catalog then.

        No file is changed by it: the header of a safetensors file keeps the name under which it was trained, so that its hash stays,
        and names go by the file everywhere. Raises `NameTaken`, `NameRefused`, and `HypernetworkError` where the disk refuses.
        """
        path, new = self._path(name), check_name(new.strip())
        if new == path.stem:
            return name
        sources, run = belonging(path), self._run(path)
        moves = [(source, source.with_name(new + source.name[len(path.stem) :])) for source in sources]
        moves += [(run.path, run.path.with_name(new))] if run else []
        self._refuse_taken(path.parent, new, own=[source for source, _ in moves])
        move(moves, f"{name} was not renamed")
        return self._name_of(path.with_name(new + path.suffix))

    def delete(self, name: str) -> Path:
        """Moves all files of the network, and its run folder as `run`, into a new folder of the trash, and gives that folder.

        Moving them back undoes it. Raises `HypernetworkError` where the disk refuses; then everything is where it was.
        """
        path = self._path(name)
        into = _new_folder(self.folders.data / "trash", f"{datetime.now():%Y-%m-%d %H.%M.%S} {path.stem[:80]}")
        run = self._run(path)
        moves = [(source, into / source.name) for source in belonging(path)] + ([(run.path, into / "run")] if run else [])
        move(moves, f"{name} was not deleted")
        self.catalog.refresh()
        return into

    def convert(self, name: str, suffix: str, overwrite: bool = False) -> Path:
        """Writes the network in the other format beside it, with its notes; gives the new file. `overwrite` allows to replace one there.

        Raises `ConfigError` for a network that a `.pt` cannot hold and for a wrong suffix, `NameTaken`, and what `files.load` raises.
        """
        path = self._path(name)
        _refuse_generator(name, path, "be written as a .pt")
        if suffix not in SUFFIXES or suffix == path.suffix.lower():
            raise ConfigError(f"{path.name} can be converted to {' or '.join(other for other in SUFFIXES if other != path.suffix.lower())}.")
        network = load(path)
        network.name, network.description = path.stem, _notes(path, _read(path)[0])
        converted = save(network, path.with_suffix(suffix), overwrite=overwrite)
        self.catalog.refresh()
        return converted

    def merge(self, parts: Sequence[tuple[str, float]], new_name: str) -> Path:
        """The weighted average of (name, weight) as a new file; raises what `merging.average` raises, `NameTaken`, `NameRefused`."""
        return self._merge(merging.average, parts, new_name)

    def chain(self, parts: Sequence[tuple[str, float]], new_name: str) -> Path:
        """One after the other, as (name, strength), as a new file; raises what `merging.chain` raises, `NameTaken`, `NameRefused`."""
        return self._merge(merging.chain, parts, new_name)

    def _merge(
        self, how: Callable[[Sequence[merging.Part]], ResidualHypernetwork], parts: Sequence[tuple[str, float]], new_name: str
    ) -> Path:
        new_name = check_name(new_name.strip())
        self._refuse_taken(self.catalog.folder, new_name)
        for name, _ in parts:
            _refuse_generator(name, self._path(name), "be merged")
        merged = how([merging.Part(name, self.catalog.load(name), weight, short_hash(self._path(name))) for name, weight in parts])
        merged.name = new_name
        path = save(merged, self.catalog.folder / f"{new_name}.safetensors")
        self.catalog.refresh()
        return path

    def _path(self, name: str) -> Path:
        path = self.catalog.path(name)
        if not os.path.lexists(path):
            raise HypernetworkError(f"The file of the hypernetwork {name!r} is gone: refresh the list.")
        return path

    def _run(self, path: Path) -> RunFolder | None:
        """The run that the file came from, if it is still there."""
        run = RunFolder(self.folders.runs, path.stem)
        return run if run.path.is_dir() and self.catalog.path(path.stem) == path else None

    def _refuse_taken(self, folder: Path, new: str, own: Sequence[Path] = ()) -> None:
        """Raises `NameTaken` where a tag of that name would mean something already, or files or a run of that name are not `own`."""
        self.catalog.refresh()
        if new in self.catalog.names():
            raise NameTaken(f"There is a hypernetwork named {new} already: choose another name.")
        runs = [run for run in _within(self.folders.runs) if run.name.casefold() == new.casefold()]
        if left := [found for found in [*family(folder, new), *runs] if found not in own]:
            what = f"a training run {left[0].name}" if left[0] in runs else f"a file {left[0].name}"
            raise NameTaken(f"There is {what} already, which would be taken for a part of {new}: choose another name.")

    def _name_of(self, path: Path) -> str:
        self.catalog.refresh()
        return next(name for name in self.catalog.names() if self.catalog.path(name) == path)


def settings(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The training options that a file's metadata holds, as somebody wrote them; empty where there are none or they cannot be read."""
    try:
        found = parsed(metadata.get("settings", "{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _file(path: Path) -> File:
    """The file as it is now; a link that leads nowhere has neither time nor size."""
    try:
        about = os.stat(path)
    except OSError:
        return File(path, 0, 0)
    return File(path, about.st_mtime_ns, about.st_size)


def _kept(known: tuple[File, Entry] | None, file: File) -> tuple[File, Entry] | None:
    """What is known of the file, unless it has changed since."""
    return known if known is not None and known[0] == file else None


def _entry(name: str, file: File) -> Entry:
    """The file's line, from its metadata if that is all in order, else from whatever `describe` makes of it."""
    if file.path.suffix.lower() == ".pt":
        return _unread(name, file, "" if file.size else _read(file.path)[1])
    try:
        return _from_metadata(name, file, read_metadata(file.path, file.size) or {})
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        facts, problem = _read(file.path)
    return _unread(name, file, problem) if facts is None else _known(name, file, facts)


def _from_metadata(name: str, file: File, metadata: Mapping[str, str]) -> Entry:
    """Raises ValueError, TypeError or KeyError for metadata that does not describe a network."""
    kind, widths, makes = metadata.get("kind"), (), ""
    if (metadata.get("format"), metadata.get("format_version")) != (FORMAT, str(VERSION)) or kind not in ("residual", GENERATOR):
        raise ValueError("another format")
    if kind == "residual":
        kind, widths = _pairs(metadata.get("pairs", ""))
    else:
        architecture = parsed(metadata.get("architecture", ""))
        makes = _makes(map(str, architecture["target_layers"]), int(architecture["rank"]))
    step, base_model = int(metadata.get("step", "")), metadata.get("base_model", "")
    return Entry(name, file.path, file.size, _date(metadata, file), kind, widths, makes, step, base_model)


@lru_cache
def _pairs(text: str) -> tuple[str, tuple[int, ...]]:
    """Kind and widths of a residual network from its header's list of pairs, which thousands of files have in common."""
    pairs = parsed(text)
    return _kind(key for key, _ in pairs), tuple(sorted({int(width) for _, width in pairs}))


def _known(name: str, file: File, facts: Facts) -> Entry:
    residual = isinstance(facts, FileFacts)
    return Entry(
        name, file.path, file.size, _date(facts.metadata, file), _kind(facts.keys) if residual else GENERATOR,
        tuple(sorted(set(facts.widths.values()))) if residual else (),
        "" if residual else _makes(facts.structure.target_layers, facts.structure.rank), facts.step, facts.metadata.get("base_model", ""),
    )  # fmt: skip


def _unread(name: str, file: File, problem: str) -> Entry:
    return Entry(name, file.path, file.size, file.time / 1e9, problem=problem)


def _makes(target_layers: Iterable[str], rank: int) -> str:
    return f"{', '.join(target_layers)}, rank {rank}"


def _refuse_generator(name: str, path: Path, what: str) -> None:
    """Raises `ConfigError` for what can only be done with a residual hypernetwork."""
    if is_generator(path):
        raise ConfigError(f"{name} is a generator and cannot {what}; the weights that it makes can be exported as a LoRA file.")


def _kind(keys: Iterable[object]) -> str:
    return "per layer" if any(isinstance(key, str) for key in keys) else "per width"


def _date(metadata: Mapping[str, str], file: File) -> float:
    """When the network was made, in seconds since 1970; else when the file was written."""
    try:
        date = datetime.fromisoformat(metadata["date"].replace("Z", "+00:00")).timestamp()
        return date if 0 < date < 2**32 else file.time / 1e9
    except (KeyError, ValueError, OverflowError, OSError):
        return file.time / 1e9


def _read(path: Path) -> tuple[Facts | None, str]:
    """What the file says, or why it cannot be used."""
    try:
        return facts_of(path), ""
    except HypernetworkError as error:
        return None, str(error)


def facts_of(path: Path) -> Facts:
    """What a file of any kind says. Raises as `files.describe` does."""
    try:
        return describe(path)
    except FileRefused:
        if is_generator(path):
            return describe_generator(path)
        raise


def _notes(path: Path, facts: Facts | None) -> str:
    noted = None
    if path.suffix.lower() == ".pt":
        try:
            noted = read_card(path).get("notes")
        except FileRefused:
            pass  # said when notes are to be written; the network can be looked at all the same
    return noted if noted and isinstance(noted, str) else "" if facts is None else facts.description


def _hash(path: Path) -> str:
    try:
        return short_hash(path)
    except OSError:
        return ""


def _losses(run: RunFolder | None) -> tuple[Row, ...]:
    try:
        return tuple(run.rows()) if run else ()
    except OSError:
        return ()


def _within(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _new_folder(parent: Path, name: str) -> Path:
    """A folder that was not there before. Raises `HypernetworkError` where none can be made."""
    for number in range(1, 1000):
        into = parent / (name if number == 1 else f"{name} {number}")
        try:
            into.mkdir(parents=True)
            return into
        except FileExistsError:
            continue
        except OSError as error:
            raise HypernetworkError(f"The trash {parent} cannot be written: {error.strerror or error}.") from error
    raise HypernetworkError(f"The trash {parent} is full of folders {name}: empty it.")
