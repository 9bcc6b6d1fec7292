"""Reference pictures for generators, kept by what they show: an infotext names a picture by its hash, and it is found again."""
from __future__ import annotations

import hashlib
from pathlib import Path

from PIL import Image

from .dataset import UnreadablePicture, open_picture
from .errors import HypernetworkError, NotThere
from .writing import write_atomically

DIGITS = 10  # of the hash, as in a tag


def reference_hash(image: Image.Image) -> str:
    """Ten hex digits of the sha256 of size and pixels, for an upright RGB picture: the same whatever file it comes from."""
    return hashlib.sha256(f"{image.width}x{image.height} ".encode() + image.tobytes()).hexdigest()[:DIGITS]


class References:
    """The pictures in a folder, one PNG each, called by their hash."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, picture: Path) -> str:
        """Copies the picture in, upright and without what stands in its file beside the pixels; gives its hash.

        Raises `HypernetworkError` for a file that is no picture or is damaged, `TrainingFailed` where there is no space left.
        """
        try:
            image = open_picture(picture)
        except UnreadablePicture as error:
            raise HypernetworkError(f"The reference picture cannot be used: it {error.reason}.") from None
        name = reference_hash(image)
        try:
            self.open(name)
        except NotThere:
            write_atomically(self.path(name), lambda temporary: image.save(temporary, "PNG"))
        return name

    def path(self, name: str) -> Path:
        """Where the picture with that hash is, or would be."""
        return self.folder / f"{name}.png"

    def open(self, name: str) -> Image.Image:
        """The picture with that hash, RGB. Raises `NotThere` for one that was never dropped in here, or was changed since."""
        if not self.path(name).is_file():
            raise NotThere(f"The reference picture {name} is not on this computer: drop it in again.")
        try:
            image = open_picture(self.path(name))
        except UnreadablePicture:
            image = None
        if image is None or reference_hash(image) != name:
            raise NotThere(f"The reference picture {name} was changed or damaged since it was kept: drop it in again.")
        return image
