"""Which folders a client may name: by default those of pictures that were dropped in or sent, by their names alone."""
from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import AccessRefused

if TYPE_CHECKING:
    from .host import Folders


def picture_folders(folders: Folders) -> list[str]:
    """Names of the folders directly below `folders.pictures`, in alphabetical order. Links to elsewhere are none."""
    home = os.path.realpath(folders.pictures)
    try:
        with os.scandir(home) as entries:
            found = [entry for entry in entries if entry.is_dir()]
    except OSError:
        return []
    # not by what kind of link they are: Windows' junctions count as folders before Python 3.12
    return sorted(entry.name for entry in found if os.path.realpath(entry.path) == os.path.join(home, entry.name))


def client_folder(text: str, folders: Folders, any_path: bool) -> Path:
    """The folder of pictures that a client means by `text`: one of `picture_folders`, or with `any_path` a path of this machine.

    Without `any_path` the text has to equal a name that was found on the disk, so that nothing in it is ever read as a path. Raises
    `AccessRefused` for every other text, the same whether there is such a place or not.
    """
    if text in picture_folders(folders):
        return folders.pictures / text
    if any_path:
        return Path(os.path.expanduser(text))
    raise AccessRefused(
        f"There is no folder of pictures named {text!r} among those that were sent here: send the pictures first, or have paths of this "
        "machine allowed in the settings."
    )
