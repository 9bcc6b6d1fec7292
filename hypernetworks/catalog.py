"""The hypernetworks in a folder: their names, their paths, and the loaded networks of the last few."""

from __future__ import annotations

import difflib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from .errors import HypernetworkError
from .files import SUFFIXES, FileFacts, describe, load
from .generator import Hypernetwork
from .generator_files import GeneratorFacts, describe_generator, is_generator, load_generator
from .residual import ResidualHypernetwork


class Catalog:
    """Names -> files -> networks, for a folder and everything below it.

    A file is called by its name without suffix, or by its path within the folder without suffix, as in "styles/striped". Where
    two files have the same name, safetensors comes before `.pt`, then the shallower folder first; the others are shown by path.
    """

    def __init__(self, folder: str | Path, loaded: int = 4) -> None:
        """`loaded`: how many networks are kept in memory."""
        self.folder = Path(folder)
        self._most_loaded = loaded
        self._listing: tuple[list[str], dict[str, Path]] | None = None
        self._networks: OrderedDict[tuple[Path, int, int], ResidualHypernetwork | Hypernetwork] = OrderedDict()
        self._lock = threading.RLock()  # web UIs generate and list from different threads

    def names(self) -> list[str]:
        """One name per hypernetwork, in alphabetical order, from the last listing."""
        with self._lock:
            return list(self._listed()[0])

    def path(self, name: str) -> Path:
        """The file of that name; an unknown one is looked for again. Raises `HypernetworkError` that names similar ones."""
        with self._lock:
            if name not in self._listed()[1]:
                self.refresh()
            names, paths = self._listed()
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

    def describe(self, name: str) -> FileFacts:
        """What the file of that name says about itself. Raises as `path` and `files.describe` do."""
        return describe(self.path(name))

    def describe_generator(self, name: str) -> GeneratorFacts | None:
        """What the generator of that name says about itself; None where there is none, or the network is of the other kind."""
        try:
            path = self.path(name)
            return describe_generator(path) if is_generator(path) else None
        except HypernetworkError:
            return None

    def refresh(self) -> None:
        """Looks at the folder again."""
        listing = _list(self.folder)
        with self._lock:
            self._listing = listing

    def _listed(self) -> tuple[list[str], dict[str, Path]]:
        if self._listing is None:
            self._listing = _list(self.folder)
        return self._listing


def _stamp(path: Path, name: str) -> tuple[int, int]:
    try:
        about = path.stat()
    except FileNotFoundError:
        raise HypernetworkError(f"The file of the hypernetwork {name!r} is gone: refresh the list.") from None
    return about.st_mtime_ns, about.st_size


def _list(folder: Path) -> tuple[list[str], dict[str, Path]]:
    """The names to show, and every accepted name -> path."""
    names, paths = [], {}
    for _, _, path, suffix in sorted(
        (SUFFIXES.index(suffix.lower()), path.count("/"), path, suffix) for path, suffix in _files(folder)
    ):
        if path in paths:  # a .pt beside the safetensors of the same name
            continue
        name = path.rpartition("/")[2]
        names.append(path if name in paths else name)
        paths[path] = folder / (path + suffix)
        paths.setdefault(name, paths[path])
    return sorted(names, key=lambda name: (name.lower(), name)), paths


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    """(path within the folder without suffix, suffix) of every file; symbolic links are followed, but never in a circle."""
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        within = Path(root).relative_to(folder).as_posix()
        for stem, suffix in map(os.path.splitext, files):
            # "None" stands for no hypernetwork in A1111's dropdowns, where such a file is not listed either
            if suffix.lower() in SUFFIXES and not stem.startswith(".") and stem != "None":
                yield stem if within == "." else f"{within}/{stem}", suffix
