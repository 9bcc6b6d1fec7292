"""The hypernetworks in a folder: their names, their paths, and the loaded networks of the last few."""

from __future__ import annotations

import difflib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from .errors import HypernetworkError
from .files import SUFFIXES, load
from .generator import Hypernetwork
from .generator_files import GeneratorFacts, describe_generator, is_generator, load_generator
from .residual import ResidualHypernetwork


class File(NamedTuple):
    """A file as the last look at the folder found it: while time and size stay, it is taken for unchanged."""

    path: Path
    time: int  # of the last change, nanoseconds since 1970; 0 where a link leads nowhere
    size: int  # bytes


class Catalog:
    """Names -> files -> networks, for a folder and everything below it.

    A file is called by its name without suffix, or by its path within the folder without suffix, as in "styles/striped". Where
    two files have the same name, safetensors comes before `.pt`, then the shallower folder first; the others are shown by path.
    """

    def __init__(self, folder: str | Path, loaded: int = 4) -> None:
        """`loaded`: how many networks are kept in memory."""
        self.folder = Path(folder)
        self._most_loaded = loaded
        self._found: dict[str, tuple[int, int]] | None = None  # path within the folder -> time and size
        self._shown: dict[str, str] = {}  # name -> path within the folder
        self._paths: dict[str, Path] = {}  # every accepted name -> path
        self._files: dict[str, File] | None = None
        self._networks: OrderedDict[tuple[Path, int, int], ResidualHypernetwork | Hypernetwork] = OrderedDict()
        self._lock = threading.RLock()  # web UIs generate and list from different threads

    def names(self) -> list[str]:
        """One name per hypernetwork, in alphabetical order, from the last listing."""
        with self._lock:
            self._look()
            return list(self._shown)

    def files(self) -> Mapping[str, File]:
        """The file of each of the names, from the last listing; the same object again while that found no change."""
        with self._lock:
            self._look()
            if self._files is None:
                self._files = {name: File(self._paths[name], *self._found[within]) for name, within in self._shown.items()}
            return self._files

    def path(self, name: str) -> Path:
        """The file of that name; it is looked for again where it is unknown, or another has come that goes before it. Raises `HypernetworkError` that names similar ones."""
        with self._lock:
            self._look()
            first = self.folder / f"{name}.safetensors"  # nothing goes before it
            if name not in self._paths or (self._paths[name] != first and first.exists()):
                self.refresh()
            names, paths = list(self._shown), self._paths
        if name in paths:
            return paths[name]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        if near:
            hint = f"Did you mean {' or '.join(near)}?"
        elif names:
            hint = f"In {self.folder} there are {', '.join(names[:5])}{' and others' if len(names) > 5 else ''}."
        else:
            hint = f"There is none in {self.folder}."
        raise HypernetworkError(f"There is no hypernetwork {name!r}. {hint}")

    def load(self, name: str) -> ResidualHypernetwork | Hypernetwork:
        """The network of that name, of either kind, the same object again while its file is unchanged. Raises as `path` and
        `files.load` do."""
        path = self.path(name)
        with self._lock:
            key = (path, *_stamp(path, name))
            if key not in self._networks:
                self._networks[key] = load_generator(path) if is_generator(path) else load(path)
            self._networks.move_to_end(key)
            while len(self._networks) > self._most_loaded:
                self._networks.popitem(last=False)
            return self._networks[key]

    def describe_generator(self, name: str) -> GeneratorFacts | None:
        """What the generator of that name says about itself; None where there is none, or the network is of the other kind."""
        try:
            path = self.path(name)
            return describe_generator(path) if is_generator(path) else None
        except HypernetworkError:
            return None

    def refresh(self) -> None:
        """Looks at the folder again: one question to the disk per file, and nothing else where no name has come or gone."""
        found = _find(self.folder)
        with self._lock:
            if found == self._found:
                return
            if self._found is None or found.keys() != self._found.keys():
                self._shown, self._paths = _named(self.folder, found)
            self._found, self._files = found, None

    def _look(self) -> None:
        if self._found is None:
            self.refresh()


def _stamp(path: Path, name: str) -> tuple[int, int]:
    try:
        about = path.stat()
    except FileNotFoundError:
        raise HypernetworkError(f"The file of the hypernetwork {name!r} is gone: refresh the list.") from None
    return about.st_mtime_ns, about.st_size


def _find(folder: Path) -> dict[str, tuple[int, int]]:
    """Path within the folder -> (time, size) of every file; symbolic links are followed, but never in a circle."""
    found, left, seen = {}, [(os.fspath(folder), "")], set()
    while left:
        root, within = left.pop()
        real = os.path.realpath(root)
        if real in seen:
            continue
        seen.add(real)
        folders = []
        for entry in _entries(root):
            name = entry.name
            if name.startswith("."):
                continue
            if _is_folder(entry):
                folders.append((entry.path, f"{within}{name}/"))
            elif name.lower().endswith(SUFFIXES):
                found[within + name] = _time_and_size(entry)
        left += sorted(folders, reverse=True)
    return found


def _entries(folder: str) -> list[os.DirEntry]:
    try:
        return list(os.scandir(folder))
    except OSError:  # not there, or not ours to read
        return []


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _time_and_size(entry: os.DirEntry) -> tuple[int, int]:
    try:
        about = entry.stat()
    except OSError:  # a link that leads nowhere is listed too, to be removed
        return 0, 0
    return about.st_mtime_ns, about.st_size


def _named(folder: Path, found: Iterable[str]) -> tuple[dict[str, str], dict[str, Path]]:
    """The names to show -> path within the folder, and every accepted name -> path."""
    shown, paths = {}, {}
    for _, _, stem, suffix in sorted(map(_ranked, found)):
        name = stem.rpartition("/")[2]
        if stem in paths or name == "None":  # a .pt beside the safetensors; "None" stands for no hypernetwork in A1111's dropdowns
            continue
        shown[stem if name in paths else name] = stem + suffix
        paths[stem] = folder / (stem + suffix)
        paths.setdefault(name, paths[stem])
    return dict(sorted(shown.items(), key=lambda item: (item[0].lower(), item[0]))), paths


def _ranked(within: str) -> tuple[int, int, str, str]:
    """(rank of the format, depth, path without suffix, suffix): of files that have a name in common the first in order has it."""
    stem, suffix = os.path.splitext(within)
    return SUFFIXES.index(suffix.lower()), stem.count("/"), stem, suffix
