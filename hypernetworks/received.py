"""Pictures that a client sends: a zip, or files as base64 in JSON, put into a new folder of pictures."""
from __future__ import annotations

import base64
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from .bounded_json import json_value
from .dataset import SUFFIXES
from .errors import BodyRefused
from .host import Folders
from .prompt import REFERENCE
from .references import References
from .uploads import CAPTION, Limits, Upload, safe_stem, store

ZIP, JSON = "application/zip", "application/json"
LARGEST = {ZIP: 4 << 30, JSON: 128 << 20}  # bytes of a body; JSON has to fit into memory
LIMITS = Limits(total_bytes=LARGEST[ZIP])
LARGEST_REFERENCE = 32 << 20  # bytes of a body that may hold reference pictures
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


def keep_reference(picture: str, folders: Folders) -> str:
    """The hash of a reference picture that is sent as base64, with or without `data:image/png;base64,` before it, and kept then.

    The hash of one that was kept before is given back as it is. Raises `BodyRefused` for other text, and what `References.keep` raises.
    """
    if REFERENCE.fullmatch(picture[:11].lower()):
        return picture.lower()
    try:
        data = base64.b64decode(picture.removeprefix("data:").rpartition(",")[2], validate=True)
    except ValueError:
        data = b""
    if not data:
        raise BodyRefused("A reference picture is sent as base64, or named by the ten digits of its hash where it was sent before.")
    folders.references.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folders.references, prefix="received-") as temporary:
        file = Path(temporary) / "picture"
        file.write_bytes(data)
        return References(folders.references).keep(file)


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
        listed = json_value(body.read_bytes())["files"]
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
