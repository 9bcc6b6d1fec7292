"""Files that change whole or not at all: temporary file, fsync, rename; and what is said where the disk has no room for that."""
from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import DiskFull, TrainingFailed

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}(\.\w+)?")  # what `write_atomically` calls its files until they are whole


def write_atomically(path: str | Path, write: Callable[[Path], object], size: int = 0) -> None:
    """Lets `write` fill a temporary file beside `path` and renames it: at any moment `path` is the old file or the whole new one.

    `size` is how many bytes that will be, where it is known: without so much room nothing is begun. Raises `DiskFull`, and `TrainingFailed`
    where the folder cannot be written; old file and folder are then as before.
    """
    path = Path(path)
    with saying_why(path):
        make_folder(path.parent)
        check_space(path.parent, size, path.name)
        _write_and_rename(path, write)


def append(path: Path, text: str) -> None:
    """Adds text to a file's end, all of it or nothing. Raises `DiskFull`, and `TrainingFailed` where the file cannot be written."""
    with saying_why(path), open(path, "ab", buffering=0) as file:
        before = file.tell()
        data = text.encode("utf-8")
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with suppress(OSError):
                file.truncate(before)
            raise


def sync(path: Path) -> None:
    """Makes what was appended to a file last through a power cut. Raises `DiskFull`, and `TrainingFailed` where that cannot be."""
    with saying_why(path), suppress(FileNotFoundError), open(path, "rb+") as file:
        os.fsync(file.fileno())


def check_space(folder: Path, size: int, what: str) -> None:
    """Raises `DiskFull` where the disk of `folder` has no room for `size` bytes."""
    if size and size > (free := shutil.disk_usage(folder).free):
        raise DiskFull(
            f"{what} cannot be saved: it takes {megabytes(size)} and the disk of {folder} has {megabytes(free)} left. "
            "Free some space and save again."
        )


def megabytes(size: int) -> str:
    """A number of bytes in words."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, which last through a power cut. Raises OSError."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def clear_temporaries(folder: Path, of: str = "", older_than: float = 0.0) -> None:
    """Removes what a killed process or a power cut has left of files that were being written: of the file named `of`, or of all; of those
    that have not changed for `older_than` seconds."""
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            ours = _TEMPORARY.fullmatch(entry.name) and entry.name.startswith(f".{of}." if of else ".")
            with suppress(OSError):
                if ours and time.time() - entry.stat().st_mtime >= older_than:
                    os.unlink(entry.path)


@contextmanager
def saying_why(path: Path) -> Iterator[None]:
    """Within it, that `path` cannot be written is told as `DiskFull` or `TrainingFailed`."""
    try:
        yield
    except TrainingFailed:
        raise
    except Exception as error:  # for a full disk each library raises an error of its own kind
        if _is_disk_full(error):
            raise DiskFull(f"{path.name} was not saved: the disk of {path.parent} is full. Free some space and save again.") from error
        if isinstance(error, OSError):
            raise TrainingFailed(f"{path.name} was not saved: {path.parent} cannot be written ({error.strerror or error}).") from error
        raise


def _write_and_rename(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{path.suffix}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes a renaming last through a power cut; Windows neither needs nor offers it."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_disk_full(error: Exception) -> bool:
    """safetensors and torch raise their own errors with the system's text in them."""
    full = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
    return (isinstance(error, OSError) and error.errno in full) or any(
        text in str(error) for text in ("No space left on device", "os error 28", "os error 112", "Disk quota exceeded")
    )
