"""A sample sheet: the previews of a run as one labelled picture, a row for each prompt and a column for each step."""
from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIDE = 256  # pixels that a picture has at most
LABEL = 200  # pixels for a row's prompt
HEAD = 28  # pixels for the steps
GAP = 6
MOST_COLUMNS, MOST_ROWS = 12, 64
LETTERS, LINES = 30, 12  # of a row's prompt


def sheet(pictures: Mapping[tuple[int, int], Path], prompts: Sequence[str]) -> Image.Image | None:
    """The pictures by (step, number of the prompt from 1); None where there are none. Of many steps some are chosen, evenly, with the first and the last."""
    steps = _chosen(sorted({step for step, _ in pictures}))
    rows = sorted({number for _, number in pictures})[:MOST_ROWS]
    if not steps:
        return None
    shown = {key: _thumbnail(path) for key, path in pictures.items() if key[0] in steps and key[1] in rows}
    width, height = (max(picture.size[axis] for picture in shown.values()) for axis in (0, 1))
    made = Image.new("RGB", (LABEL + len(steps) * (width + GAP), HEAD + len(rows) * (height + GAP)), "white")
    draw = ImageDraw.Draw(made)
    for column, step in enumerate(steps):
        _write(draw, (LABEL + column * (width + GAP), GAP), f"step {step:,}")
    for row, number in enumerate(rows):
        top = HEAD + row * (height + GAP)
        prompt = prompts[number - 1] if number <= len(prompts) else ""
        _write(draw, (GAP, top), "\n".join(textwrap.wrap(prompt, LETTERS, max_lines=LINES, placeholder=" ...")))
        for column, step in enumerate(steps):
            if (step, number) in shown:
                made.paste(shown[step, number], (LABEL + column * (width + GAP), top))
    return made


def _chosen(steps: Sequence[int]) -> list[int]:
    if len(steps) <= MOST_COLUMNS:
        return list(steps)
    return [steps[round(place * (len(steps) - 1) / (MOST_COLUMNS - 1))] for place in range(MOST_COLUMNS)]


def _thumbnail(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    return small


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str) -> None:
    try:
        font = ImageFont.load_default(13)
    except TypeError:  # Pillow before 10.1 has one size, and no letters beyond Latin-1
        font, text = ImageFont.load_default(), text.encode("latin-1", "replace").decode("latin-1")
    draw.multiline_text(place, text, fill="black", font=font)
