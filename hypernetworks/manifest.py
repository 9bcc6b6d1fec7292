"""What a run was made from and with: hashes of its pictures and captions, and versions, so that what has changed since can be named."""
from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from . import __version__
from .dataset import Picture
from .host import Host

NAMED = 5  # pictures that a sentence names before it says how many more
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "Pillow")


def manifest(pictures: Sequence[Picture]) -> dict[str, dict[str, str]]:
    """Each picture's name within its dataset -> 32 digits of the sha256 of its `file`, and of its `caption` and `mask` where it has them."""
    found = {}
    for picture in pictures:
        about = {"file": picture.key}
        if picture.caption is not None:
            about["caption"] = _digits(picture.caption.encode("utf-8", "surrogatepass"))
        if picture.mask is not None:
            about["mask"] = sha256(picture.mask)[:32]
        found[_name(picture)] = about
    return found


def digest(noted: Mapping[str, Any]) -> str:
    """32 digits that two manifests have in common only if they are equal."""
    return _digits(repr(sorted((name, sorted(about.items())) for name, about in noted.items())).encode("utf-8", "surrogatepass"))


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A sentence for each way in which pictures differ; none where all are the same."""
    both = [name for name in before if name in now]
    differing = {
        "are missing": [name for name in before if name not in now],
        "are new": [name for name in now if name not in before],
        "were changed": [name for name in both if before[name].get("file") != now[name].get("file")],
        "have another caption": [name for name in both if before[name].get("caption") != now[name].get("caption")],
        "have another mask": [name for name in both if before[name].get("mask") != now[name].get("mask")],
    }
    return [f"These pictures {how}: {_named(names)}." for how, names in differing.items() if names]


def surroundings(host: Host, processes: int = 1) -> dict[str, str]:
    """Versions, and what else decides over the last digits of a result, by name."""
    versions = {name.lower(): version for name in PACKAGES if (version := _version(name))}
    return {
        "hypernetworks": __version__, "python": platform.python_version(), **versions, "host": type(host).__name__, "system": platform.platform(),
        "processor": platform.machine(), "device": str(host.device), "threads": str(torch.get_num_threads()), "processes": str(processes),
    }  # fmt: skip


def differences(before: Mapping[str, Any], now: Mapping[str, str]) -> list[str]:
    """What of the surroundings is not as it was, in words."""
    return [f"{name} was {before[name]} and is {now.get(name, 'not there')}" for name in before if before[name] != now.get(name)]


def sha256(path: Path) -> str:
    """The file's hash in 64 digits; empty where there is none."""
    found = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    except OSError:
        return ""
    return found.hexdigest()


def _name(picture: Picture) -> str:
    kind = "regularization" if picture.regularization else ""
    return "/".join(part for part in (kind, picture.group, picture.folder, picture.path.name) if part)


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _digits(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
