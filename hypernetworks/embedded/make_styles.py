"""Draws folders of styles: what a generator for the embedded model is trained on, and what it never sees.

    python -m hypernetworks.embedded.make_styles FOLDER [--styles 1000] [--pictures 12]

Styles are those of `shapes.random_style`. Numbers below 1,000 are trained on, numbers from 10,000 on are not. Of one palette and of one fill no
style is trained on at all, to see how far a generator goes beyond the families it knows.
"""
from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Iterable
from pathlib import Path

from . import shapes

TRAINED, HELD_OUT = 1000, 10_000  # numbers below the one, numbers from the other on
FAMILIES = {"palette night": ("palette", "night"), "fill checks": ("fill", "checks")}  # never trained: name -> field of `Style`, value


def training_styles(below: int = TRAINED) -> list[int]:
    """Numbers of the styles that are trained on."""
    return [number for number in range(below) if not families_of(number)]


def held_out_styles(count: int, family: str | None = None) -> list[int]:
    """Numbers of the first `count` styles that are never trained on: of families that are, or of one that is not and no other such one."""
    wanted = [family] if family else []
    return list(itertools.islice((number for number in itertools.count(HELD_OUT) if families_of(number) == wanted), count))


def families_of(number: int) -> list[str]:
    """The names of the families never trained that a style belongs to."""
    style = shapes.random_style(number)
    return [name for name, (field, value) in FAMILIES.items() if getattr(style, field) == value]


def contents_of(number: int, count: int) -> list[shapes.Content]:
    """What the pictures of a style show: the same for the same number, whatever the count."""
    rng = random.Random(f"contents {number}")
    return [shapes.random_content(rng) for _ in range(count)]


def make_styles(folder: Path, numbers: Iterable[int], pictures: int) -> Path:
    """A folder per style within `folder`, named by its number; captions tell the content and not the style. Finished ones are left as they are."""
    for number in numbers:
        make_style(folder / f"{number:05}", number, pictures)
    return folder


def make_style(folder: Path, number: int, pictures: int) -> Path:
    """The pictures (01.png, ...) and captions (01.txt, ...) of one style."""
    if (folder / f"{pictures:02}.txt").is_file():  # what is written last
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    style = shapes.random_style(number)
    for place, content in enumerate(contents_of(number, pictures), start=1):
        shapes.draw(content, style).save(folder / f"{place:02}.png", compress_level=1)
        (folder / f"{place:02}.txt").write_text(content.caption() + "\n", encoding="utf-8")
    return folder


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw folders of captioned pictures, a style in each.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--styles", type=int, default=TRAINED, help="numbers below this one (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=12, help="of each style (default: %(default)s)")
    options = parser.parse_args(arguments)
    make_styles(options.folder, training_styles(options.styles), options.pictures)


if __name__ == "__main__":
    main()
