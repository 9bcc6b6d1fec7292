"""Pictures and captions that are dropped in, as files or as a zip archive, put safely into one folder."""
from __future__ import annotations

import os
import re
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from .archives import member_count
from .dataset import SUFFIXES
from .errors import DatasetError

CAPTION = ".txt"
LONGEST_STEM = 160  # bytes in UTF-8; most file systems take names of 255
BLOCK = 1 << 20  # bytes held in memory while a file is copied

_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9]|lpt[0-9])\s*(\.|$)", re.IGNORECASE)  # Windows
_FORBIDDEN = re.compile(r'[<>:"/\\|?*]')
_UNREADABLE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, ValueError)  # what zipfile raises


@dataclass(frozen=True)
class Limits:
    """What is accepted at once. Pictures hardly compress: what unpacks to more than `ratio` times its size is a bomb, save for
    the `harmless_bytes` that plain drawings may need."""

    files: int = 20_000
    total_bytes: int = 16 << 30
    ratio: float = 200.0
    harmless_bytes: int = 256 << 20


@dataclass
class Upload:
    """What came of it: the files that are in the folder now, and (name, reason) of those that are not."""

    taken: list[Path] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Item:
    """One file to take in. Files with the same `group` belong together: a picture and its caption."""

    name: str  # as the user knows it
    stem: str
    suffix: str
    group: tuple[str, str]
    size: int
    open: Callable[[], BinaryIO]


def unpack(archive: Path, into: Path, limits: Limits = Limits()) -> Upload:
    """Pictures and captions of a zip archive, from all its folders, into the one folder `into`.

    Names are made safe. Where two files have one name the later gets a number, and so does its caption. Raises `DatasetError`
    for an archive that is damaged, beyond `limits`, or holds no picture; `into` then holds what it held before.
    """
    upload = Upload()
    try:
        _check_directory(archive, limits)
        with zipfile.ZipFile(archive) as opened:
            entries = [
                entry for entry in opened.infolist() if not entry.filename.endswith(("/", "\\"))
            ]  # is_dir fails on a name of nothing
            items = [item for entry in entries if (item := _item_of_entry(opened, entry, upload, limits))]
            if sum(item.size for item in items) > max(limits.harmless_bytes, limits.ratio * archive.stat().st_size):
                raise DatasetError(f"{archive.name} would unpack to far more than pictures do; it was not unpacked.")
            _take(items, into, limits, upload)
    except _UNREADABLE as error:
        raise DatasetError(f"{archive.name} is no zip archive that can be read: {error}.") from None
    except OSError as error:
        raise DatasetError(f"{archive.name} cannot be unpacked: {error.strerror or error}.") from None
    if not any(path.suffix in SUFFIXES for path in upload.taken):
        _remove(upload.taken)
        raise DatasetError(f"{archive.name} holds no pictures that can be read (png, jpg, webp or bmp).")
    return upload


def store(files: Iterable[Path], into: Path, limits: Limits = Limits()) -> Upload:
    """Pictures and captions that were dropped in as files, copied into the folder `into`; zip archives among them are unpacked.

    Names are treated as in `unpack`; the folders that a browser's files come from do not matter. An archive that `unpack`
    refuses is left out. Raises `DatasetError` where nothing can be taken, beyond `limits`, and where the disk refuses.
    """
    upload, files = Upload(), [Path(path) for path in files]
    archives = [path for path in files if path.suffix.lower() == ".zip"]
    try:
        items = [item for path in files if path not in archives and (item := _item_of_file(path, upload))]
        _take(items, into, limits, upload)
    except OSError as error:
        raise DatasetError(f"The files cannot be copied: {error.strerror or error}.") from None
    for archive in archives:
        try:
            unpacked = unpack(archive, into, limits)
            upload.taken += unpacked.taken
            upload.left_out += unpacked.left_out
        except DatasetError as error:
            upload.left_out.append((archive.name, str(error).rstrip(".")))
    if not upload.taken:
        reason = "; ".join(f"{name}: {reason}" for name, reason in upload.left_out[:3])
        raise DatasetError(f"Nothing was taken in. {reason}." if reason else "No files were given.")
    return upload


def safe_stem(name: str) -> str:
    """A file name without its suffix that every system takes, and that leads nowhere else."""
    stem = "".join(character for character in name if unicodedata.category(character)[0] != "C")
    stem = _FORBIDDEN.sub("_", stem).strip(" .")
    stem = stem.encode("utf-8", "ignore")[:LONGEST_STEM].decode("utf-8", "ignore").rstrip(" .")
    return f"_{stem}" if not stem or _RESERVED.match(stem) else stem


def _check_directory(archive: Path, limits: Limits) -> None:
    """Refuses an archive whose list of contents alone would fill the memory: Python reads all of it at once."""
    with open(archive, "rb") as file:
        try:
            count = member_count(file)
        except ValueError as error:
            raise DatasetError(f"{archive.name} is {error}.") from None
        if count > limits.files:
            raise DatasetError(f"{archive.name} holds more than {limits.files} files; unpack it yourself and choose the folder.")


def _item_of_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, upload: Upload, limits: Limits) -> _Item | None:
    folder, _, name = entry.filename.replace("\\", "/").rpartition("/")
    if name.startswith("._") or folder.startswith("__MACOSX"):
        return None  # what macOS adds to every archive
    reason = ""
    if stat.S_ISLNK(entry.external_attr >> 16):
        reason = "a link"
    elif entry.flag_bits & 1:
        reason = "needs a password"
    elif entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        reason = "compressed in a way that is not read here"
    if reason:
        upload.left_out.append((entry.filename, reason))
        return None
    if entry.file_size > max(limits.harmless_bytes, limits.ratio * entry.compress_size):
        raise DatasetError(f"{entry.filename} would unpack to far more than a picture does; the archive was not unpacked.")
    return _item(name, folder, entry.file_size, lambda: archive.open(entry), upload)


def _item_of_file(path: Path, upload: Upload) -> _Item | None:
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        upload.left_out.append((path.name, "not a file"))
        return None
    return _item(path.name, "", status.st_size, lambda: open(path, "rb"), upload)


def _item(name: str, folder: str, size: int, opener: Callable[[], BinaryIO], upload: Upload) -> _Item | None:
    stem, suffix = os.path.splitext(unicodedata.normalize("NFKC", name).replace("\\", "/").rpartition("/")[2])
    suffix = suffix.lower()
    if suffix not in (*SUFFIXES, CAPTION):
        upload.left_out.append((name, "neither a picture (png, jpg, webp or bmp) nor a caption (txt)"))
        return None
    return _Item(name, safe_stem(stem), suffix, (folder, stem.lower()), size, opener)


def _take(items: Sequence[_Item], into: Path, limits: Limits, upload: Upload) -> None:
    """Writes the items. Everything or nothing: after an error no file of theirs is left."""
    total = sum(item.size for item in items)
    if len(items) > limits.files:
        raise DatasetError(f"These are {len(items)} files; at most {limits.files} are taken at once. Choose a folder instead.")
    if total > limits.total_bytes:
        raise DatasetError(
            f"This is {_size(total)}; at most {_size(limits.total_bytes)} are taken at once. Choose a folder instead."
        )
    into.mkdir(parents=True, exist_ok=True)
    if total > (free := shutil.disk_usage(into).free):
        raise DatasetError(f"This needs {_size(total)} and the disk has {_size(free)} left. Free some space and try again.")
    written: list[Path] = []
    try:
        for item, name in _named(items, into, upload):
            _write(item, into / name, written, upload)
    except BaseException:
        _remove(written)
        raise
    upload.taken += written


def _named(items: Sequence[_Item], into: Path, upload: Upload) -> Iterable[tuple[_Item, str]]:
    """Each item's file name: its own, or one with a number where another picture or caption has it."""
    groups: dict[tuple, list[_Item]] = {}
    seen: Counter[tuple] = Counter()
    for item in items:  # the second "cat.png" of a folder belongs to the second "cat.txt"
        seen[item.group, item.suffix] += 1
        groups.setdefault((item.group, seen[item.group, item.suffix]), []).append(item)
    there: dict[str, set[bool]] = {}  # lower-cased stem -> whether a caption, a picture, or both are there
    for path in into.iterdir():
        there.setdefault(path.stem.lower(), set()).add(path.suffix.lower() == CAPTION)
    # pictures choose first, so that a caption from another folder of the archive can join one that has none
    for group in sorted(groups.values(), key=lambda group: all(item.suffix == CAPTION for item in group)):
        kinds = {item.suffix == CAPTION for item in group}
        stem, number = group[0].stem, 1
        while there.get(stem.lower(), set()) & kinds:
            number += 1
            stem = f"{group[0].stem} ({number})"
        if number > 1 and kinds == {True}:
            upload.left_out += [(item.name, "there is a caption of that name") for item in group]
            continue
        there.setdefault(stem.lower(), set()).update(kinds)
        yield from ((item, stem + item.suffix) for item in group)


def _write(item: _Item, path: Path, written: list[Path], upload: Upload) -> None:
    """Copies an item to `path`, which must be new. Never more bytes than were announced."""
    try:
        with item.open() as source, open(path, "xb") as target:
            written.append(path)
            left = item.size
            while left > 0 and (block := source.read(min(BLOCK, left))):  # an archive's checksum is compared with the last block
                target.write(block)
                left -= len(block)
    except _UNREADABLE as error:
        upload.left_out.append((item.name, f"damaged: {error}"))
        if written[-1:] == [path]:
            _remove([written.pop()])


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GB" if count >= 1 << 30 else f"{count / (1 << 20):.1f} MB"
