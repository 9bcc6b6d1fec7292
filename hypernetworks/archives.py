"""How many members a zip archive lists, counted before Python's zipfile makes an object of each."""
from __future__ import annotations

import os
import struct
from typing import BinaryIO

# PKWARE's APPNOTE 4.3.16: signature, three counts of disks, entries, the directory's size and offset, the comment's length
_END = struct.Struct("<4s4H2LH")
# 4.3.15 and 4.3.14: what stands before that in archives of the 64-bit form, of which only the directory's size counts here
_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_MEMBER = b"PK\x01\x02"


def member_count(file: BinaryIO) -> int:
    """At least as many as zipfile would find, whatever the archive says of their number. Raises ValueError for what is no archive."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END.size - 0xFFFF))
    tail = file.read()
    start = tail.rfind(b"PK\x05\x06")
    if start < 0 or start + _END.size > len(tail):
        raise ValueError("no zip archive, or only a part of one")
    listed, end = _END.unpack_from(tail, start)[5], size - len(tail) + start
    before = _END_64.size + _LOCATOR.size
    if end >= before:
        file.seek(end - before)
        record = file.read(before)
        if record[_END_64.size :].startswith(b"PK\x06\x07"):
            listed = max(listed if listed != 0xFFFFFFFF else 0, _END_64.unpack_from(record)[8])
    return _count(file, max(0, end - before - listed), end)


def _count(file: BinaryIO, start: int, end: int, block: int = 1 << 20) -> int:
    """Marks of members between two places, also where one lies across two blocks."""
    file.seek(start)
    found, kept, left = 0, b"", end - start
    while left > 0 and (data := file.read(min(block, left))):
        left -= len(data)
        found += (kept + data).count(_MEMBER)
        kept = (kept + data)[-(len(_MEMBER) - 1) :]
    return found
