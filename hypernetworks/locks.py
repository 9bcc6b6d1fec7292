"""Locks between programs that work in one data folder. The system takes them from a program that ends, in whatever way."""
from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .writing import make_folder

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None
    import msvcrt

RUN = "run.lock"  # in a run's folder, while a program trains there
PAUSE = 0.02  # seconds between looks whether a lock is free


@contextmanager
def held(file: Path, patience: float = 0.0) -> Iterator[bool]:
    """Within it `file` is there, and nobody else holds it; False where somebody does and has not let go for `patience` seconds.

    Where the disk has no locks, or the folder cannot be written, everybody is let through.
    """
    until = time.monotonic() + patience
    with ExitStack() as stack:
        while not (ours := _take(file, stack)) and time.monotonic() < until:
            time.sleep(PAUSE)
        yield ours


def is_free(file: Path) -> bool:
    """Whether nobody holds it now."""
    if not file.exists():
        return True
    with held(file) as ours:
        return ours


def _take(file: Path, stack: ExitStack) -> bool:
    """Whether it is ours, until the stack ends."""
    try:
        make_folder(file.parent)
        opened = open(file, "ab")
    except OSError:  # not ours to write: who goes on to write there is told so
        return True
    try:
        _lock(opened)
        replaced = not os.path.samestat(os.fstat(opened.fileno()), os.stat(file))
    except BlockingIOError:
        opened.close()
        return False
    except FileNotFoundError:  # who held it has let go, and removed it, since it was opened
        replaced = True
    except OSError:  # the disk has no locks
        replaced = False
    if replaced:
        opened.close()
        return _take(file, stack)
    stack.callback(_let_go, opened, file)
    return True


def _lock(opened: BinaryIO) -> None:
    """Raises BlockingIOError where it is taken, another OSError where the disk has no locks."""
    if fcntl is not None:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    try:
        msvcrt.locking(opened.fileno(), msvcrt.LK_NBLCK, 1)
    except PermissionError as error:
        raise BlockingIOError from error


def _let_go(opened: BinaryIO, file: Path) -> None:
    with suppress(OSError):  # Windows removes no file that is open
        file.unlink()
    opened.close()
