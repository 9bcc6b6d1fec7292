"""How often which picture is shown: numbered folders (the manner of kohya's sd-scripts), and regularisation pictures beside the others."""
from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .buckets import Bucket
from .dataset import Dataset, Picture, read_folder
from .errors import DatasetError

_NUMBERED = re.compile(r"(\d{1,4})_(.*\S.*)")


def numbered(name: str) -> tuple[int, str] | None:
    """(10, "ink") for a folder named "10_ink"; None for one without a number."""
    match = _NUMBERED.fullmatch(name)
    return (int(match[1]), match[2].strip()) if match else None


def read_pictures(folder: str | Path, **about: Any) -> Dataset:
    """The pictures of a folder and of the numbered folders within it; `about` are the arguments of `read_folder`.

    Those of "10_ink" are shown ten times as often as others, those of "0_ink" not at all; "ink" is the caption of one that has none of its
    own. Raises `DatasetError` where no picture is found.
    """
    folder = Path(os.path.expanduser(folder))
    inner = _numbered_folders(folder)
    if not inner:
        return read_folder(folder, **about)
    found, problem = [], None
    for path, repeats, caption in [(folder, 1, ""), *inner]:
        try:
            found.append(_repeated(read_folder(path, **about | ({"shared_caption": caption} if caption else {})), path, repeats, caption))
        except DatasetError as error:  # the folder itself usually holds none
            problem = problem or (error if path != folder else None)
    if not found:
        raise problem
    return Dataset([p for d in found for p in d.pictures], [s for d in found for s in d.skipped], [w for d in found for w in d.warnings])


def hands_for(pictures: Sequence[Picture], buckets: Sequence[Bucket]) -> list[list[int]]:
    """The places of a plan (see `plan.Plan`), each with the pictures that take turns there, by their numbers; `buckets` holds each picture's.

    A picture has as many places as repeats. Regularisation pictures together have as many places as the others: few of them have several
    each, many take turns with those of their bucket.
    """
    hands = [[number] for number, picture in enumerate(pictures) if not picture.regularization for _ in range(picture.repeats)]
    regular: dict[Bucket, list[int]] = {}
    for number, picture in enumerate(pictures):
        if picture.regularization:
            regular.setdefault(buckets[number], []).append(number)
    wanted, total = len(hands), sum(map(len, regular.values()))
    for group in regular.values():
        places = max(1, round(wanted * len(group) / total))
        hands += [group[place::places] or [group[place % len(group)]] for place in range(places)]
    return hands


def _numbered_folders(folder: Path) -> list[tuple[Path, int, str]]:
    """(folder, repeats, caption) by name; none where the folder is not there, which `read_folder` then says."""
    try:
        with os.scandir(folder) as entries:
            found = [(Path(entry.path), numbered(entry.name)) for entry in entries if entry.is_dir()]
    except (OSError, ValueError):
        return []
    return sorted((path, *number) for path, number in found if number and number[0])


def _repeated(dataset: Dataset, folder: Path, repeats: int, caption: str) -> Dataset:
    if caption:
        dataset.pictures = [
            dataclasses.replace(picture, repeats=repeats, folder=folder.name)
            if picture.caption
            else dataclasses.replace(picture, repeats=repeats, folder=folder.name, caption=caption, caption_from="folder")
            for picture in dataset.pictures
        ]
    return dataset
