"""Options in files: TOML or JSON that is read, TOML that is written."""
from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import ConfigError

LARGEST = 1 << 18  # bytes; lists within lists take the reader of TOML two seconds for each million
DEEPEST = 8  # dots in a name of TOML; for a long one its reader keeps every beginning, so that a file of this size would take gigabytes
_ASIDE = re.compile(r'''"""(?:[^\\]|\\.)*?(?:"{3,5}|\Z)|\'{3}.*?(?:\'{3,5}|\Z)|"(?:[^"\\\n]|\\.)*"?|'[^'\n]*'?|#[^\n]*''', re.DOTALL)
"""Texts and comments of TOML. One that has no end goes to the end of its line or of all, so that no place is looked at twice."""


def read_config(path: Path) -> dict[str, Any]:
    """The values of a TOML or JSON file. Raises `ConfigError` that names the file and what is wrong with it."""
    kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"The configuration {path} has {path.stat().st_size} bytes, far more than the options take.")
        text = path.read_text(encoding="utf-8-sig")
        values = json.loads(text) if kind == "JSON" else _from_toml(text)
    except OSError as error:
        raise ConfigError(f"The configuration {path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:  # both readers' errors and wrong encodings are ValueErrors
        raise ConfigError(f"The configuration {path} is no valid {kind}: {error}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"The configuration {path} must hold names and values.")
    return values


def toml_text(values: Mapping[str, Any]) -> str:
    """The values as TOML, one a line: texts, numbers, true and false, and lists of them. JSON's way to write these is one of TOML's, but for
    a character that it leaves as it is."""
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items()).replace("\x7f", "\\u007f")


def _from_toml(text: str) -> dict[str, Any]:
    try:
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib
    except ModuleNotFoundError:  # a web UI on Python 3.10
        return _from_lines(text)
    if _deepest_name(text) > DEEPEST:
        raise ValueError(f"a name in it has more than {DEEPEST} dots")
    return tomllib.loads(text)


def _deepest_name(text: str) -> int:
    """The most dots of any name, number or date; a name's parts may be texts, and may stand apart."""
    names = re.split(r"[^\w.-]+", re.sub(r"[ \t]", "", _ASIDE.sub("text", text)))
    return max(name.count(".") for name in names)


def _from_lines(text: str) -> dict[str, Any]:
    """What `toml_text` has written. Raises ValueError for other TOML."""
    try:
        return {name.strip(): json.loads(value) for name, _, value in (line.partition("=") for line in text.split("\n") if line.strip())}
    except ValueError:
        raise ValueError("without the package tomli (pip install tomli), only files that were written here are understood") from None
