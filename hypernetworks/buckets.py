"""Aspect-ratio buckets: sizes of about one area that pictures are cut to, so that one batch holds pictures of one size."""
from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

MAX_ASPECT = 2.0  # long side over short side of the longest bucket
AREA_TOLERANCE = 0.25  # how much a bucket's area may differ from the square's
CROP_ZOOM = (
    9 / 8
)  # crops beside the centre one come from a picture this much larger, so that a square picture too can be cut anew


@dataclass(frozen=True)
class Bucket:
    """A size in pixels that pictures of a similar shape are cut to."""

    width: int
    height: int


@dataclass(frozen=True)
class Crop:
    """Where a bucket lies in a picture that was resized by `scale` to `width` x `height`; `left` and `top` are its corner, in
    pixels."""

    width: int
    height: int
    left: int
    top: int
    scale: float


@lru_cache
def buckets(resolution: int, step: int, factor: int = 8) -> tuple[Bucket, ...]:
    """The square of side `resolution` (rounded to `factor`, the pixels per latent cell), then oblong buckets of about the same
    area, sides multiples of `step`, up to an aspect of 2:1 both ways."""
    side = max(factor, round(resolution / factor) * factor)
    step = math.ceil(step / factor) * factor
    found = [Bucket(side, side)]
    for long in range((side // step + 1) * step, 2 * side, step):
        shorter = [short for short in range(step, side, step) if long <= MAX_ASPECT * short]
        off = {short: abs(long * short / side**2 - 1) for short in shorter}
        short = min(off, key=off.get, default=None)
        if short and off[short] <= AREA_TOLERANCE:
            found += [Bucket(long, short), Bucket(short, long)]
    return tuple(found)


def bucket_of(width: int, height: int, resolution: int, step: int, factor: int = 8) -> Bucket:
    """The bucket whose aspect is nearest to that of `width` x `height`."""
    return min(
        buckets(resolution, step, factor), key=lambda bucket: abs(math.log(bucket.width * height / (bucket.height * width)))
    )


def crop_of(width: int, height: int, bucket: Bucket, crop: int = 0, flip: bool = False) -> Crop:
    """How a picture of `width` x `height` is resized to cover `bucket`, and where the bucket is cut out.

    Crop 0 is the centre of the whole picture. The others are cut from a picture enlarged by `CROP_ZOOM`, at places that spread
    evenly (the R2 sequence, Roberts 2018). With `flip` the place is that in the mirrored picture.
    """
    scale = max(bucket.width / width, bucket.height / height) * (CROP_ZOOM if crop else 1)
    width, height = max(bucket.width, round(width * scale)), max(bucket.height, round(height * scale))
    across, down = (0.5 + crop * 0.7548776662466927) % 1, (0.5 + crop * 0.5698402909980532) % 1
    left, top = int(across * (width - bucket.width + 1)), int(down * (height - bucket.height + 1))
    return Crop(width, height, width - bucket.width - left if flip else left, top, scale)
