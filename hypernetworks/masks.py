"""Masks: which places of a picture count, at the size of its latents."""
from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageChops, ImageOps
from torch import Tensor

from .config import TrainingConfig
from .dataset import Picture, UnreadablePicture, crop_of, open_alpha, open_picture
from .latents import LatentStore

KEPT = 512  # masks in memory, as bytes; one of a 1024 x 1024 picture is 16 KB
NAMED = 3  # files that a warning names


class MaskStore:
    """What each place of a picture counts, [1, h, w] for latents [c, h, w]: 1 within its mask, the configuration's unmasked weight outside of it,
    in between where a cell lies on the edge."""

    def __init__(self, latents: LatentStore, config: TrainingConfig) -> None:
        """`latents` says how pictures are cut."""
        self.latents, self.config = latents, config
        self._kept = lru_cache(KEPT)(self._cells)

    def prepare(self, pictures: Sequence[Picture]) -> list[tuple[Path, str]]:
        """Reads every mask. Gives the pictures that cannot be used, each with the reason."""
        problems = []
        if self.config.masks == "none":
            return problems
        for picture in pictures:
            try:
                if not self._weights(self._cells(picture, False, 0)).any():
                    problems.append((picture.path, "has a mask that leaves nothing of it"))
            except UnreadablePicture as error:
                problems.append((picture.path, f"has a mask that {error.reason} ({error.path.name})"))
        return problems

    def warnings(self, pictures: Sequence[Picture]) -> list[str]:
        """Sentences about masks that are not used, and about masks that are missing."""
        masks = [picture.mask.name for picture in pictures if picture.mask is not None]
        if masks and self.config.masks in ("none", "alpha"):
            named = ", ".join(masks[:NAMED]) + (f" and {len(masks) - NAMED} more" if len(masks) > NAMED else "")
            return [f"These files are taken for masks and not used: {named}. Choose files under Masks (masks) to have them count."]
        if self.config.masks == "files" and not masks:
            return ["No picture has a mask, so all places count: a mask of cat.jpg is called cat-mask.png."]
        return []

    def get(self, picture: Picture, flip: bool, crop: int) -> Tensor:
        """The weights [1, h, w] of a view. Raises `UnreadablePicture`."""
        return self._weights(self._kept(picture, flip, crop))

    def _weights(self, cells: Tensor) -> Tensor:
        return self.config.unmasked_weight + (1 - self.config.unmasked_weight) * (cells.float() / 255)

    def _cells(self, picture: Picture, flip: bool, crop: int) -> Tensor:
        """[1, h, w] uint8, 255 within the mask. Bytes all the way: large floats between those that are kept would leave gaps in the memory."""
        bucket, factor = self.latents.bucket(picture), self.latents.factor
        mask = self._open(picture)
        if mask is None:
            return torch.full((1, bucket.height // factor, bucket.width // factor), 255, dtype=torch.uint8)
        mask = ImageOps.invert(mask) if self.config.invert_masks else mask
        place = crop_of(picture.width, picture.height, bucket, crop)
        mask = mask.resize((place.width, place.height), Image.Resampling.BILINEAR)
        mask = mask.crop((place.left, place.top, place.left + bucket.width, place.top + bucket.height))
        if flip:
            mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(numpy.array(mask.reduce(factor)))[None]

    def _open(self, picture: Picture) -> Image.Image | None:
        """The mask (L) at any size; None where the picture has none."""
        if picture.mask is not None and self.config.masks in ("files", "both"):
            mask, alpha = open_picture(picture.mask).convert("L"), open_alpha(picture.mask)
            return mask if alpha is None else ImageChops.multiply(mask, alpha)
        return open_alpha(picture.path) if self.config.masks in ("alpha", "both") else None


def balanced(area: Tensor) -> Tensor:
    """What places [b, 1, h, w] count, scaled so that each picture's count 1 on average."""
    return area / area.mean((1, 2, 3), keepdim=True).clamp_min(1e-6)
