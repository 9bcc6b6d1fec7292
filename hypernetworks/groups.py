"""Folders of styles, subjects or tasks: what a generating hypernetwork is trained on. The pictures of one folder have in common what
is to be generated, and stand for one another as references."""
from __future__ import annotations

import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .dataset import Dataset, Picture, read_folder
from .errors import DatasetError
from .plan import random_for, split
from .repeats import numbered

NAMED = 3  # folders that a warning names before it says how many more


def read_groups(folder: str | Path, **about: Any) -> Dataset:
    """The pictures of all folders within `folder`, each with its folder's name as its `group`; those of a folder that has none
    within it are one group. The number of a folder named such as 10_ink says how often its pictures are shown, and is no part of the
    group's name. `about` are the arguments of `read_folder`.

    Folders without pictures, and folders with a single one, which could be no other's reference, are left out with a warning.
    Raises `DatasetError` where nothing is left.
    """
    folder = Path(os.path.expanduser(folder))
    inner = _folders(folder)
    if not inner:
        return _checked([_read(folder, **about)], folder)
    found, problems = [], []
    for path in inner:
        try:
            found.append(_read(path, path.name, **about))
        except DatasetError as error:
            problems.append(str(error))
    if not found:
        raise DatasetError(problems[0])
    dataset = _checked(found, folder)
    dataset.warnings[:0] = _shortened(problems)
    return dataset


def group_names(pictures: Iterable[Picture]) -> tuple[str, ...]:
    """The groups' names in the order in which tasks are numbered."""
    return tuple(sorted({picture.group for picture in pictures}))


def split_groups(pictures: Sequence[Picture], share: float, seed: int) -> tuple[list[Picture], list[Picture]]:
    """(training pictures, held-out pictures): whole groups are held out, so that what is measured was never seen. With a single
    group some of its pictures are.

    Held-out pictures come in turns, the first of every group before the second of any.
    """
    groups = group_names(pictures)
    held_out = round(share * len(groups))
    if len(groups) < 2:
        return split(pictures, share, seed)
    chosen = set(random_for(seed, 0, 0, "held-out groups").sample(groups, min(held_out, len(groups) - 1)))
    return [picture for picture in pictures if picture.group not in chosen], in_turns(
        [picture for picture in pictures if picture.group in chosen]
    )


def with_companions(pictures: Sequence[Picture]) -> list[Picture]:
    """Those that have another one of their group among them."""
    members = Counter(picture.group for picture in pictures)
    return [picture for picture in pictures if members[picture.group] > 1]


class References:
    """For every picture the others of its group."""

    def __init__(self, pictures: Iterable[Picture]) -> None:
        self.groups: dict[str, list[Picture]] = defaultdict(list)
        for picture in pictures:
            self.groups[picture.group].append(picture)

    def of(self, picture: Picture, seed: int, step: int, sample: int) -> Picture:
        """Another picture of the same group, of which there must be one, drawn anew for each (seed, step, sample)."""
        others = [other for other in self.groups[picture.group] if other.path != picture.path]
        return random_for(seed, step, sample, "reference").choice(others)


def _read(folder: Path, within: str = "", **about: Any) -> Dataset:
    """The pictures of one folder, as a group; `within` is its name in the labels of its pictures."""
    dataset = read_folder(folder, **about)
    repeats, name = numbered(folder.name) or (1, folder.name)
    dataset.pictures = [dataclasses.replace(picture, group=name, repeats=repeats, folder=within) for picture in dataset.pictures]
    return dataset


def _folders(folder: Path) -> list[Path]:
    """Folders within it, by name; none where it is not there, which `read_folder` then says."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except (OSError, ValueError):
        return []


def _checked(datasets: Sequence[Dataset], folder: Path) -> Dataset:
    """All of them as one, without groups of a single picture."""
    alone = [dataset.pictures[0].group for dataset in datasets if len(dataset.pictures) < 2]
    kept = [dataset for dataset in datasets if len(dataset.pictures) >= 2]
    if not kept:
        raise DatasetError(
            f"No folder in {folder} holds two pictures: a generator learns from one picture of a style what another one looks like."
        )
    warnings = [f"A single picture is no group, so it is left out: {_listed(alone)}."] if alone else []
    warnings += _shortened([f"{d.pictures[0].group}: {warning}" for d in kept for warning in d.warnings])
    return Dataset([p for d in kept for p in d.pictures], [s for d in datasets for s in d.skipped], warnings)


def _shortened(texts: Sequence[str]) -> list[str]:
    """The first few of many sentences of one kind."""
    more = len(texts) - NAMED
    return [*texts[:NAMED], *([f"The same or the like goes for {more} more folder{'s' * (more > 1)}."] if more > 0 else [])]


def _listed(names: Sequence[str]) -> str:
    named = ", ".join(names[:NAMED])
    return named if len(names) <= NAMED else f"{named} and {len(names) - NAMED} more"


def in_turns(pictures: Sequence[Picture]) -> list[Picture]:
    """The first picture of every group before the second of any."""
    seen: dict[str, int] = defaultdict(int)
    turns = []
    for picture in pictures:
        turns.append(seen[picture.group])
        seen[picture.group] += 1
    return [picture for _, _, picture in sorted(zip(turns, range(len(turns)), pictures, strict=True), key=lambda entry: entry[:2])]
