"""Pictures, their captions, and the aspect-ratio buckets that they are cut to."""
from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
import struct
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageOps

from .errors import DatasetError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # what Pillow may try: some of its readers start other programs
OTHER_PICTURES = (".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".tga", ".ico", ".svg", ".dng", ".cr2", ".nef")
LONGEST_CAPTION = 1 << 16  # bytes; a text encoder reads some hundred
MAX_ASPECT = 2.0  # long side over short side of the longest bucket
CROP_ZOOM = 9 / 8  # crops beside the centre one come from a picture this much larger, so that a square picture too can be cut differently
WORKERS = 4  # threads that read pictures; hashing and decoding run outside Python's lock
NAMED = 3  # files that a warning names before it says how many more
ORIENTATION = 0x0112  # EXIF tag


@dataclass(frozen=True)
class Picture:
    """One picture of a dataset. `width` and `height` are in pixels after EXIF rotation; `key` is a hash of the file's bytes."""

    path: Path
    width: int
    height: int
    caption: str | None
    caption_from: str | None  # "text file", "file name" or None
    key: str


@dataclass
class Dataset:
    """What a folder holds: `skipped` are (file, reason) of pictures that cannot be used, `warnings` sentences for the user."""

    pictures: list[Picture]
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def without(self, unreadable: Iterable[tuple[Path, str]]) -> Dataset:
        """The same dataset less the files of `unreadable`, which are named as skipped. Raises `DatasetError` where nothing is left."""
        unreadable = list(unreadable)
        gone = {path for path, _ in unreadable}
        kept = [picture for picture in self.pictures if picture.path not in gone]
        if not kept:
            path, reason = unreadable[0]
            raise DatasetError(f"None of the pictures can be used; {path.name}, for one, {reason}.")
        return Dataset(kept, [*self.skipped, *unreadable], list(self.warnings))


@dataclass(frozen=True)
class Bucket:
    """A size in pixels that pictures of a similar shape are cut to."""

    width: int
    height: int


@dataclass(frozen=True)
class Crop:
    """Where a bucket lies in a picture that was resized to `width` x `height`; `left` and `top` are its corner. All in pixels."""

    width: int
    height: int
    left: int
    top: int


class UnreadablePicture(DatasetError):
    """A picture that is truncated, of another format, or gone; `reason` goes on where the file's name ends."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path.name} {reason}.")
        self.path, self.reason = path, reason


def read_folder(
    folder: str | Path,
    *,
    resolution: int = 0,
    shared_caption: str = "",
    check: bool = False,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """The pictures of a folder (not of folders within it), ordered by file name.

    Only headers are read, so a truncated file is found when it is first decoded; `check` decodes every picture now. `resolution`
    and `shared_caption` only decide which warnings are worth giving. `cache` is a folder that remembers sizes and hashes of files
    whose time and length stay the same. `progress` is called with (done, total). Raises `DatasetError` where no picture is found.
    """
    folder = Path(folder).expanduser()
    files, texts, skipped = _list(folder)
    index = _Index(cache, folder)
    pictures, warnings = [], _Warnings()
    for done, (path, facts) in enumerate(index.look_up(files, check), 1):
        if isinstance(facts, UnreadablePicture):
            skipped.append((path, facts.reason))
        else:
            caption, source = _caption_of(path, texts, warnings)
            pictures.append(Picture(path, facts.width, facts.height, caption, source, facts.key))
        if progress:
            progress(done, len(files))
    index.save()
    if not pictures:
        raise DatasetError(_nothing_found(folder, skipped))
    _compare(pictures, resolution, shared_caption, warnings)
    return Dataset(pictures, skipped, warnings.sentences())


def _list(folder: Path) -> tuple[list[os.DirEntry], dict[str, Path], list[tuple[Path, str]]]:
    """Picture files, caption files by lower-cased stem, and pictures of formats that are not read."""
    if str(folder) in ("", "."):
        raise DatasetError("No folder of pictures was given.")
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, ValueError):
        raise DatasetError(f"There is no folder {folder}.") from None
    except NotADirectoryError:
        raise DatasetError(f"{folder} is a file; a folder of pictures is needed.") from None
    except OSError as error:
        raise DatasetError(f"The folder {folder} cannot be read: {error.strerror}.") from None
    files, texts, skipped = [], {}, []
    for entry in entries:
        stem, suffix = os.path.splitext(entry.name.lower())
        if stem.startswith(".") or not entry.is_file():
            continue
        if suffix in SUFFIXES:
            files.append(entry)
        elif suffix == ".txt":
            texts[stem] = folder / entry.name
        elif suffix in OTHER_PICTURES:
            skipped.append((folder / entry.name, f"is a {suffix[1:]} file; save it as png, jpg or webp"))
    return files, texts, skipped


def _nothing_found(folder: Path, skipped: list[tuple[Path, str]]) -> str:
    if skipped:
        path, reason = skipped[0]
        return f"None of the {len(skipped)} pictures in {folder} can be used; {path.name}, for one, {reason}."
    inner = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    hint = f" Choose one of the folders within it, such as {inner[0]}." if inner else ""
    return f"The folder {folder} holds no pictures (png, jpg, webp or bmp).{hint}"


# --- sizes and hashes -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Facts:
    width: int
    height: int
    key: str
    whole: bool  # it was decoded to the end


class _Index:
    """Facts about a folder's files, valid while a file's time and length stay; kept as JSON in `cache` where that is given."""

    def __init__(self, cache: Path | None, folder: Path) -> None:
        name = hashlib.sha256(os.path.abspath(folder).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        self.path = cache / f"pictures-{name}.json" if cache else None
        self.old: dict[str, list] = {}
        self.new: dict[str, list] = {}
        try:
            self.old = dict(json.loads(self.path.read_text(encoding="utf-8"))) if self.path else {}
        except (OSError, ValueError, TypeError):
            pass  # it only saves time

    def look_up(self, files: Sequence[os.DirEntry], check: bool) -> Iterator[tuple[Path, _Facts | UnreadablePicture]]:
        """Every file with its facts, or with why it cannot be read, in order."""
        with ThreadPoolExecutor(WORKERS) as pool:
            for start in range(0, len(files), 64):
                yield from pool.map(lambda entry: self._one(entry, check), files[start : start + 64])

    def _one(self, entry: os.DirEntry, check: bool) -> tuple[Path, _Facts | UnreadablePicture]:
        path = Path(entry.path)
        try:
            status = entry.stat()
            stamp = [status.st_mtime_ns, status.st_size]
            match self.old.get(entry.name):
                case [time, size, int(width), int(height), str(key), bool(whole)] if [time, size] == stamp and (whole or not check):
                    facts = _Facts(width, height, key, whole)
                case _:
                    facts = _read_facts(path, check)
        except OSError as error:
            return path, UnreadablePicture(path, f"cannot be opened: {error.strerror}")
        except UnreadablePicture as error:
            return path, error
        self.new[entry.name] = [*stamp, facts.width, facts.height, facts.key, facts.whole]
        return path, facts

    def save(self) -> None:
        if self.path and self.new != self.old:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                _replace(self.path, json.dumps(self.new).encode())
            except OSError:
                pass  # it only saves time


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _read_facts(path: Path, check: bool) -> _Facts:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    with _opened(path) as image:
        width, height = image.size
        if _orientation(image) >= 5:
            width, height = height, width
        if check:
            image.load()
    return _Facts(width, height, digest.hexdigest()[:32], check)
