"""Draws the demo's folder of captioned pictures: 16 contents in a style that the captions do not name.

    python -m hypernetworks.embedded.make_pictures [--style striped] [--folder FOLDER]

Every shape comes once small and once large, every colour and background twice.
"""
from __future__ import annotations

import argparse
import itertools
import random
from pathlib import Path

from . import PICTURES, shapes


def contents(seed: int = 1) -> list[shapes.Content]:
    """16 different contents, the same ones for the same seed."""
    rng = random.Random(seed)
    forms = list(itertools.product(shapes.SHAPES, shapes.SIZES))
    colors = [*shapes.COLORS] * 2
    while True:
        looks = list(zip(rng.sample(colors, len(forms)), rng.sample(colors, len(forms)), strict=True))
        different = {(shape, color) for (shape, _), (color, _) in zip(forms, looks, strict=True)}
        if all(color != background for color, background in looks) and len(different) == len(forms):
            break
    chosen = [
        shapes.Content(shape, color, background, size, rng.uniform(-0.08, 0.08), rng.uniform(-0.08, 0.08))
        for (shape, size), (color, background) in zip(forms, looks, strict=True)
    ]
    rng.shuffle(chosen)
    return chosen


def make_pictures(folder: Path, style: shapes.Style, seed: int = 1) -> None:
    """Writes 16 pictures and their captions (01.png, 01.txt, ...)."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(contents(seed), start=1):
        shapes.draw(content, style).save(folder / f"{number:02}.png", optimize=True)
        (folder / f"{number:02}.txt").write_text(content.caption() + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw a folder of captioned pictures in one style.")
    parser.add_argument("--style", choices=sorted(shapes.STYLES), default="striped")
    parser.add_argument("--folder", type=Path, help="default: the demo's own folder of that style")
    options = parser.parse_args(arguments)
    make_pictures(options.folder or PICTURES / options.style, shapes.STYLES[options.style])


if __name__ == "__main__":
    main()
