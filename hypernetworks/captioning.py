"""Captions for pictures that have none, written by whatever the host describes pictures with."""
from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from PIL import Image

from .dataset import Picture, UnreadablePicture, open_picture
from .errors import DatasetError, HypernetworkError

FAILED = "<error>"  # what A1111's interrogator ends its answer with when it fails (modules/interrogate.py:217)
Captioner = Callable[[Image.Image], str]
log = logging.getLogger(__name__)


def captionable(pictures: Iterable[Picture]) -> list[Picture]:
    """Those that have neither a caption nor a text file of their name, be it an empty one; of several with one name, one."""
    bare = {picture.path.with_suffix(".txt"): picture for picture in pictures if picture.caption is None}
    taken = {str(entry).lower() for folder in {path.parent for path in bare} for entry in folder.iterdir()}
    return [picture for path, picture in bare.items() if str(path).lower() not in taken]


def write_captions(pictures: Sequence[Picture], captioner: Captioner) -> Iterator[tuple[int, int, str | None]]:
    """Writes each picture's caption into a new text file beside it; yields (pictures done, of how many, caption). Who leaves it stops it.

    A picture that cannot be read, or has been given a text file meanwhile, stays as it is, and its caption is None. Raises `DatasetError`
    at the first picture that the captioner has no words for, and where a file cannot be written.
    """
    for done, picture in enumerate(pictures, 1):
        yield done, len(pictures), _write(picture, captioner)


def _write(picture: Picture, captioner: Captioner) -> str | None:
    try:
        image = open_picture(picture.path)
    except UnreadablePicture as error:
        log.warning("%s It is left without a caption.", error)
        return None
    caption = _describe(image, picture.path.name, captioner)
    path = picture.path.with_suffix(".txt")
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(caption + "\n")
    except FileExistsError:
        log.warning("%s has been written meanwhile and stays as it is.", path)
        return None
    except OSError as error:
        raise DatasetError(f"The caption {path} cannot be written: {error.strerror}.") from None
    return caption


def _describe(image: Image.Image, name: str, captioner: Captioner) -> str:
    try:
        caption = " ".join(captioner(image).split())
    except HypernetworkError:
        raise
    except Exception as error:  # the host's own, of any kind
        log.exception("Captioning %s failed", name)
        raise DatasetError(f"{name} could not be captioned ({type(error).__name__}: {error}); the log has the details.") from None
    if not caption or FAILED in caption:
        raise DatasetError(f"{name} could not be captioned: what describes pictures here failed, and the log says why.")
    return caption
