"""The library's table: one row per network, found by words, with a small picture each."""
from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from PIL import Image

from ..config import shortened
from ..library import Entry, Library
from ..sidecars import picture_beside
from .markup import data_uri, escape, file_size, note, plural

SHOWN = 200  # rows on the page; a search finds the others
SIDE = 64  # pixels of a row's picture, which the style sheet shows at 48
KEPT = 1000  # pictures that are kept for the next look
MOST_PIXELS = 50_000_000  # of a picture that is opened for a thumbnail

SORTINGS: dict[str, Callable[[Entry], object]] = {
    "Newest first": lambda entry: -entry.date,
    "Name": lambda entry: entry.name.casefold(),
    "Largest first": lambda entry: -entry.size,
    "Most steps first": lambda entry: -(entry.step or 0),
    "Base model": lambda entry: (not entry.base_model, entry.base_model.casefold()),
}
COLUMNS = ("", "Name", "Kind", "Widths", "Size", "Steps", "Base model", "Date")


class Table:
    """Makes the HTML. A row carries its network's name in `data-hypernetwork`, by which the page's script opens it."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self._entries: list[Entry] = []
        self._pictures: OrderedDict[tuple[str, int, int], str] = OrderedDict()

    def refreshed(self, search: str = "", sorting: str = "", selected: str = "") -> str:
        """The rows after another look at the folder."""
        self._entries = self.library.entries()
        return self.html(search, sorting, selected)

    def html(self, search: str = "", sorting: str = "", selected: str = "") -> str:
        """The rows of the last look that match, at most `SHOWN`; the row of the network `selected` is marked."""
        entries = self._entries
        if not entries:
            return note(f"There are no hypernetworks in {self.library.catalog.folder} yet: train one, or put files there.", "hint")
        found = matching(entries, search, sorting)
        shown = found[:SHOWN]
        with ThreadPoolExecutor(4) as pool:
            rows = "".join(_row(entry, picture, entry.name == selected) for entry, picture in zip(shown, pool.map(self._picture, shown), strict=True))
        head = "".join(f"<th>{name}</th>" for name in COLUMNS)
        return (
            f'<p class="hypernetworks-summary" role="status">{_summary(len(entries), len(found), len(shown))}</p>'
            f'<div class="hypernetworks-rows"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{_hint(shown)}'
        )

    def _picture(self, entry: Entry) -> str:
        """The entry's picture within an address, made anew when its file has changed; empty where there is none."""
        source = picture_beside(entry.path) or entry.path
        try:
            about = os.stat(source)
        except OSError:
            return ""
        key = (os.fspath(source), about.st_mtime_ns, about.st_size)
        if key not in self._pictures:
            self._pictures[key] = thumbnail(self.library.preview(entry.path), SIDE)
            if len(self._pictures) > KEPT:
                self._pictures.popitem(last=False)
        return self._pictures[key]


def matching(entries: Sequence[Entry], search: str, sorting: str) -> list[Entry]:
    """The entries whose name, kind or base model contain every word, in order."""
    words = search.casefold().split()
    key = SORTINGS.get(sorting, next(iter(SORTINGS.values())))
    return sorted((entry for entry in entries if all(word in _text_of(entry) for word in words)), key=key)


def thumbnail(picture: bytes | None, side: int) -> str:
    """A picture file as the address of a small picture; empty for a file that is none."""
    if not picture:
        return ""
    try:
        with Image.open(io.BytesIO(picture), formats=("PNG", "JPEG", "WEBP", "GIF")) as image:
            if image.width * image.height > MOST_PIXELS:
                return ""
            image.draft("RGB", (side, side))  # lets a JPEG be decoded at less than its size
            return data_uri(image, side)
    except Exception:  # whatever Pillow's readers make of damaged bytes, there is nothing to show
        return ""


def date_of(seconds: float) -> str:
    """A date as `2026-03-01`; a dash for none."""
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d}" if seconds > 0 else "–"


def _text_of(entry: Entry) -> str:
    return f"{entry.name} {entry.kind or entry.path.suffix} {entry.base_model}".casefold()


def _summary(count: int, found: int, shown: int) -> str:
    if found < count:
        words = f"<strong>{found:,}</strong> of {plural(count, 'hypernetwork')}"
    else:
        words = f"<strong>{plural(count, 'hypernetwork')}</strong>"
    return words + (f", the first {shown:,} shown: search for the others" if shown < found else "")


def _hint(shown: Sequence[Entry]) -> str:
    unread = any(not entry.kind and not entry.problem for entry in shown)
    return '<p class="hypernetworks-words">What a .pt file holds is shown once it has been opened.</p>' if unread else ""


def _row(entry: Entry, picture: str, selected: bool) -> str:
    image = f'<img src="{picture}" alt="">' if picture else ""
    name = f'<button type="button" title="{escape(str(entry.path))}">{escape(entry.name)}</button>'
    return (
        f'<tr data-hypernetwork="{escape(entry.name)}" aria-selected="{str(selected).lower()}"><td>{image}</td><td data-column="Name">{name}</td>'
        f"{_problem(entry) if entry.problem else _facts(entry)}</tr>"
    )


def _problem(entry: Entry) -> str:
    return f'<td class="hypernetworks-problem" colspan="{len(COLUMNS) - 2}">{escape(shortened(entry.problem, 300))}</td>'


def _facts(entry: Entry) -> str:
    cells = (
        entry.kind or entry.path.suffix.lower(),
        ", ".join(map(str, entry.widths[:8])) or escape(shortened(entry.makes, 60)) or "–",
        file_size(entry.size),
        "–" if entry.step is None else f"{entry.step:,}",
        escape(shortened(entry.base_model, 60)).replace("_", "_<wbr>") or "–",
        date_of(entry.date),
    )
    return "".join(f'<td data-column="{name}">{cell}</td>' for name, cell in zip(COLUMNS[2:], cells, strict=True))
