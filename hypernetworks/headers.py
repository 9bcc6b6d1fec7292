"""The metadata of a safetensors file without its weights: read fast enough for thousands of files, and changed in place.

A file is the header's length in 8 bytes, the header in JSON, and the weights (https://github.com/huggingface/safetensors, "Format").
"""
from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors

from .errors import FileRefused
from .writing import write_atomically

_START = '{"__metadata__":'  # the reference implementation, which writes our files, puts it first
_AT_ONCE = 2**16  # bytes; most headers are shorter
LARGEST = 2 << 20  # bytes of a header; those of hypernetworks have some hundred thousand, and objects take many times the room of their text
MOST_ENTRIES = 10_000  # of a header, one for each weight; checkpoints of whole models have some thousand
LONGEST_TEXT = 1 << 18  # of JSON within the metadata, for the same reason
_LAST_OFFSET = re.compile(r',(\d{1,18})\]\}\}\s*$')
_DECODER = json.JSONDecoder()


def read_metadata(path: str | Path, size: int | None = None) -> dict[str, str] | None:
    """The metadata, if the file is as long as its header says; None for any other file, about which `files.describe` knows more.

    `size` in bytes spares a question to the disk where somebody has asked it before. Only the metadata is decoded, not the list of weights behind it, which takes ten times as long. Raises OSError.
    """
    try:
        length, text, size = _beginning(path, size)
        last = _LAST_OFFSET.search(text, max(0, len(text) - 256))
        if not text.startswith(_START) or last is None or size != 8 + length + int(last[1]):
            return None
        metadata, _ = _DECODER.raw_decode(text, len(_START))
    except (ValueError, RecursionError):
        return None
    return metadata if isinstance(metadata, dict) and set(map(type, metadata.values())) <= {str} else None


def _check_header(path: Path) -> None:
    """Raises `FileRefused` for a header that would take far more memory than the file has bytes, before anything makes objects of it."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(LARGEST) if length <= LARGEST else b""
    except OSError as error:
        raise FileRefused(f"{path.name} cannot be read: {error.strerror or error}.") from error
    if LARGEST < length <= path.stat().st_size:
        raise FileRefused(f"{path.name} cannot be used: its header has {length / 2**20:.1f} MB, and no hypernetwork's is larger than {LARGEST >> 20}.")
    if header.count(b"{") > MOST_ENTRIES or header.count(b",") > 8 * MOST_ENTRIES:
        raise FileRefused(f"{path.name} cannot be used: its header has more entries than any hypernetwork has weights.")


def open_header(path: Path) -> tuple[dict[str, str], set[str]]:
    """Metadata, and the names of the tensors; no weight is read. Raises `FileRefused` for what is no whole safetensors file, and as `_check_header` does."""
    _check_header(path)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return dict(file.metadata() or {}), set(file.keys())
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise FileRefused(f"{path.name} is damaged, incomplete or no safetensors file: get it again.") from error


def parsed(text: str) -> Any:
    """What JSON within the metadata says. Raises ValueError and RecursionError."""
    if len(text) > LONGEST_TEXT:
        raise ValueError("far longer than any hypernetwork's")
    return json.loads(text)


def write_safetensors(path: Path, data: bytes) -> None:
    """Writes what `safetensors.torch.save` gives, its metadata in the order of their names: the library's changes from time to time, and with it the
    file's hash. Raises `DiskFull` and `TrainingFailed`."""
    length = _checked_length(data[:8])
    entries = json.loads(data[8 : 8 + length])
    header = _encoded({**entries, "__metadata__": dict(sorted(entries.get("__metadata__", {}).items()))})

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            file.write(header)
            file.write(memoryview(data)[8 + length :])

    write_atomically(path, write, len(data))


def change_metadata(path: str | Path, changes: Mapping[str, str]) -> None:
    """Writes the file anew with these entries of its metadata; the other entries and every weight stay as they are, bit by bit.

    Raises `FileRefused` for a file that is no safetensors file, and `TrainingFailed` where it cannot be written.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            _, text = _header(file)
            entries = json.loads(text)
            header = _encoded({**entries, "__metadata__": {**entries.get("__metadata__", {}), **changes}})
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FileRefused(f"{path.name} is damaged, incomplete or no safetensors file: it was left as it is.") from error

    def write(temporary: Path) -> None:
        with open(path, "rb") as old, open(temporary, "wb") as new:
            _header(old)
            new.write(header)
            shutil.copyfileobj(old, new, 2**20)

    write_atomically(path, write, path.stat().st_size)


def _beginning(path: str | Path, size: int | None) -> tuple[int, str, int]:
    """Length and text of the header, and the file's size unless it is known, with as few questions to the disk as possible.

    Raises ValueError where there is no header, OSError where there is no file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        data = os.read(descriptor, _AT_ONCE)
        size = os.fstat(descriptor).st_size if size is None else size
        length = _checked_length(data[:8])
        while len(data) < min(8 + length, size) and (more := os.read(descriptor, 8 + length - len(data))):
            data += more
    finally:
        os.close(descriptor)
    if len(data) < 8 + length:
        raise ValueError("half a header")
    return length, data[8 : 8 + length].decode(), size


def _header(file: BinaryIO) -> tuple[int, str]:
    """Length and text of the header; the file then stands at the weights. Raises ValueError where there is none."""
    length = _checked_length(file.read(8))
    data = file.read(length)
    if len(data) < length:
        raise ValueError("half a header")
    return length, data.decode()


def _checked_length(data: bytes) -> int:
    length = int.from_bytes(data, "little")
    if not 2 <= length <= LARGEST:
        raise ValueError("no header")
    return length


def _encoded(entries: Mapping[str, Any]) -> bytes:
    """Length and text, padded so that the weights stay at multiples of 8 bytes as in the files of the reference implementation."""
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
