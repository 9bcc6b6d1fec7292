"""Pictures that a client sends: a zip, or files as base64 in JSON, put into a new folder of pictures."""
from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

from .dataset import SUFFIXES
from .errors import BodyRefused
from .host import Folders
from .uploads import CAPTION, Limits, Upload, safe_stem, store

ZIP, JSON = "application/zip", "application/json"
LARGEST = {ZIP: 4 << 30, JSON: 128 << 20}  # bytes of a body; JSON has to fit into memory
LIMITS = Limits(total_bytes=LARGEST[ZIP])
FORM = 'Files are sent as {"files": [{"name": "01.png", "data": "<base64>"}, ...]}, or as a zip.'


def keep(kind: str, body: Path, name: str, folders: Folders) -> tuple[Path, Upload]:
    """Stores what is in the file `body`, which is `ZIP` or `JSON`, in a new folder called `name`, or so with a number.

    Files may be made beside `body`. Gives the folder and what came of the files. Raises `BodyRefused` for JSON of another form, and
    what `uploads.store` raises.
    """
    left_out: list[tuple[str, str]] = []
    files = _unpack(body, left_out) if kind == JSON else [body.rename(body.with_suffix(".zip"))]
    into = _new_folder(folders.pictures, safe_stem(name))
    try:
        upload = store(files, into, LIMITS)
    except BaseException:
        shutil.rmtree(into, ignore_errors=True)
        raise
    upload.left_out[:0] = left_out
    return into, upload


def _unpack(body: Path, left_out: list[tuple[str, str]]) -> list[Path]:
    """Writes what stands in the JSON as files, each into a folder of its own, since two may have the same name."""
    files = []
    for number, (name, data) in enumerate(_listed(body)):
        stem, _, suffix = name.replace("\\", "/").rpartition("/")[2].rpartition(".")
        suffix = f".{suffix.lower()}"
        if suffix not in (*SUFFIXES, CAPTION):
            left_out.append((name, "neither a picture (png, jpg, webp or bmp) nor a caption (txt)"))
            continue
        files.append(body.with_name(str(number)) / (safe_stem(stem) + suffix))
        files[-1].parent.mkdir()
        files[-1].write_bytes(data)
    return files


def _listed(body: Path) -> list[tuple[str, bytes]]:
    """Names and contents of `{"files": [{"name": "01.png", "data": "<base64>"}, ...]}`."""
    try:
        listed = json.loads(body.read_bytes())["files"]
        files = [(entry["name"], base64.b64decode(entry["data"], validate=True)) for entry in listed]
    except (ValueError, TypeError, KeyError, RecursionError):  # JSON's and base64's errors are ValueErrors
        raise BodyRefused(FORM) from None
    if not all(isinstance(name, str) for name, _ in files):
        raise BodyRefused(FORM)
    return files


def _new_folder(pictures: Path, name: str) -> Path:
    """Makes the folder; its name gets a number where there is one of that name."""
    pictures.mkdir(parents=True, exist_ok=True)
    into, number = pictures / name, 1
    while True:
        try:
            into.mkdir()
            return into
        except FileExistsError:
            number += 1
            into = pictures / f"{name}-{number}"
