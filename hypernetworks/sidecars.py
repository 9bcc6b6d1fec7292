"""The files that belong to a network's file by their names, and moving all of them or none."""
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .errors import FileRefused, HypernetworkError
from .files import SUFFIXES
from .writing import write_atomically

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
PREVIEWS = tuple(ending for suffix in _PICTURES for ending in (suffix, f".preview{suffix}"))
"""A1111's cards show the first of these that is there (A1111, modules/ui_extra_networks.py:19 and 574)."""
CARD = ".json"
"""What A1111's cards keep of a network: its notes under "notes", and more (A1111, modules/ui_extra_networks_user_metadata.py:121)."""
ENDINGS = frozenset({*SUFFIXES, *(f"{suffix}.optim" for suffix in SUFFIXES), *PREVIEWS, CARD, ".txt", ".description.txt"})

Move = tuple[Path, Path]


def family(folder: Path, stem: str) -> list[Path]:
    """The files of the network of that name in a folder, if there is one: in each format, its optimizer's state, pictures and notes.

    Capital letters count as small ones, as they do for Windows.
    """
    if not folder.is_dir():
        return []
    begin = stem.casefold()
    names = ((path, path.name.casefold()) for path in folder.iterdir())
    return sorted(path for path, name in names if name.startswith(begin) and name[len(begin) :] in ENDINGS)


def belonging(path: Path) -> list[Path]:
    """The files that go where the network's file goes, itself among them."""
    return [found for found in family(path.parent, path.stem) if found.name.startswith(path.stem)]


def picture_beside(path: Path) -> Path | None:
    """The picture that a web UI's card shows for the network's file."""
    stem = os.path.splitext(path)[0]  # text, not paths: a table asks for hundreds of them
    return next((Path(stem + ending) for ending in PREVIEWS if os.path.isfile(stem + ending)), None)


def move(moves: Sequence[Move], what: str) -> None:
    """Moves every file or none; no target may be there yet. `what` begins the sentence of the `HypernetworkError` that is raised if not."""
    done: list[Move] = []
    try:
        for source, target in moves:
            shutil.move(source, target)
            done.append((source, target))
    except OSError as error:
        _undo(done)
        raise HypernetworkError(f"{what}: {error.strerror or error}.") from error


def _undo(done: Iterable[Move]) -> None:
    for source, target in reversed(list(done)):
        shutil.move(target, source)


def read_card(path: Path) -> dict[str, Any]:
    """What a web UI's card keeps of the network's file, empty where there is nothing. Raises `FileRefused` for a file it cannot be."""
    card = path.with_name(path.stem + CARD)
    if not card.is_file():
        return {}
    try:
        kept = json.loads(card.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileRefused(f"The notes in {card.name} cannot be read: mend or remove that file.") from error
    if not isinstance(kept, dict):
        raise FileRefused(f"{card.name} holds something else than a card's notes: mend or remove that file.")
    return kept


def change_card(path: Path, **changes: Any) -> None:
    """Changes entries of what a web UI's card keeps of the network's file; the others stay. Raises what `read_card` raises."""
    text = json.dumps({**read_card(path), **changes}, indent=4, ensure_ascii=False)
    write_atomically(path.with_name(path.stem + CARD), lambda temporary: temporary.write_text(text, encoding="utf-8"))
