"""What every benchmark shares: the command line, the printed table, the JSON beside it, picture grids, and parts that are kept so that an
interrupted run goes on where it stopped."""
from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from hypernetworks.writing import write_atomically

LABEL_HEIGHT = 16  # pixels


def arguments(name: str, description: str | None) -> argparse.ArgumentParser:
    """The command line of the benchmark `name`: --small, --json FILE, --out FOLDER; more can be added."""
    parser = argparse.ArgumentParser(prog=f"benchmarks/{name}.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a short version of a minute or two; its figures prove nothing but that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--out", type=Path, default=Path("outputs") / name, metavar="FOLDER", help="where tables, pictures and finished parts go (default: %(default)s)")
    return parser


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; floats get three decimals, None a dash."""

    def cell(value: Any) -> str:
        return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

    cells = [list(columns), *([cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = ["| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def write_figures(path: Path | None, figures: Mapping[str, float], **more: Any) -> None:
    """Writes {"figures": {name: number}} and whatever else is given; nothing where `path` is None."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"figures": {name: round(float(value), 6) for name, value in figures.items()}, **more}, indent=1)
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def in_new_process(call: Callable[..., Any], *values: Any) -> Any:
    """What `call` gives in a Python of its own, where nothing has been read or kept and where all memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(call, *values).result()


def kept(folder: Path, name: str, settings: Any, make: Callable[[], Any]) -> Any:
    """The JSON value of one part: read from `folder` where the part was made with equal settings, else made and kept."""
    key = hashlib.sha256(repr(settings).encode()).hexdigest()[:10]
    path = folder / "parts" / f"{name}-{key}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    value = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(value), encoding="utf-8"))
    return value


def grid(pictures: Sequence[Image.Image], columns: int, labels: Sequence[str] = ()) -> Image.Image:
    """Pictures of one size in rows of `columns`; `labels`, one per row, stand above their rows."""
    width, height = pictures[0].size
    above = LABEL_HEIGHT if labels else 0
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * (height + above)), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % columns * width, number // columns * (height + above) + above))
    for row, label in enumerate(labels):
        ImageDraw.Draw(sheet).text((4, row * (height + above) + 2), label, fill="black")
    return sheet
