"""Small pieces of HTML that several parts show. All text from outside is escaped here."""
from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

from PIL import Image

__all__ = ["code", "data_uri", "duration", "escape", "file_size", "note", "plural"]


def note(text: str, kind: str = "error") -> str:
    """One sentence in a box; `kind` is "error", "warning", "good" or "hint". No text, no box."""
    role = "alert" if kind == "error" else "status"
    return f'<div class="hypernetworks-note hypernetworks-{kind}" role="{role}">{escape(text)}</div>' if text else ""


def code(text: str | Path) -> str:
    """A path, a tag or a hash."""
    return f"<code>{escape(str(text))}</code>"


def plural(count: int, one: str, many: str = "") -> str:
    """`1 picture`, `2 pictures`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """A length of time as one says it: `40 seconds`, `12 minutes`, `2 hours 5 minutes`."""
    if seconds < 90:
        return plural(max(1, round(seconds)), "second")
    minutes = round(seconds / 60)
    if minutes < 60:
        return plural(minutes, "minute")
    rest = f" {plural(minutes % 60, 'minute')}" if minutes % 60 else ""
    return plural(minutes // 60, "hour") + rest


def file_size(size: int) -> str:
    """Bytes as `640 KB` or `83.6 MB`."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(1, round(size / 1e3))} KB"


def data_uri(picture: Image.Image, side: int) -> str:
    """The picture as a JPEG of at most `side` pixels within an address, so that no file of the machine need be served."""
    small = picture.convert("RGB")
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
