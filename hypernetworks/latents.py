"""Latents and caption embeddings, encoded once. Latents stay on disk, one small file per view of a picture, so that a second
start finds them and memory stays flat however many pictures there are."""
from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .dataset import Bucket, Picture, UnreadablePicture, bucket_of, crop_of, load_pixels
from .errors import TrainingFailed
from .host import Conditioning, Host, PictureSize
from .writing import clear_temporaries, write_atomically

VERSION = 1  # of what lies between a picture's file and its latents; a new number makes all be encoded anew
LARGEST_BATCH = 8
BATCH_PIXELS = LARGEST_BATCH * 512 * 512  # larger pictures go in smaller batches: the autoencoder's memory grows with the pixels
PROMPTS_AT_ONCE = 16
DAY = 86400.0  # seconds; another process may be writing what is younger
WORKERS = 4  # threads that decode pictures and write files


class View(NamedTuple):
    """One way to show a picture to the model."""

    picture: Picture
    bucket: Bucket
    flip: bool
    crop: int

    @property
    def file_name(self) -> str:
        """Says all that the latents depend on but the model."""
        mirrored = "-mirrored" if self.flip else ""
        return f"{self.picture.key}-{self.bucket.width}x{self.bucket.height}-{self.crop}{mirrored}.safetensors"


class LatentStore:
    """The latents of pictures cut to buckets of about `resolution`² pixels (0: the model's own resolution), kept below `folder`.

    A file is found again by the picture's content, its view and the model; one that is damaged is simply encoded again.
    Mirrored pictures are encoded separately: a mirrored latent is not the latent of the mirrored picture.
    """

    def __init__(self, folder: Path, host: Host, resolution: int = 0, bucket_step: int = 64) -> None:
        facts = host.model
        self.host, self.bucket_step, self.factor = host, bucket_step, facts.latent_factor
        self.resolution = resolution or facts.resolution
        self.folder = folder / _identity(VERSION, facts.hash, facts.vae, str(host.dtype))
        self.skipped: list[tuple[Path, str]] = []  # pictures that could not be read, with the reason; see `Dataset.without`

    def bucket(self, picture: Picture) -> Bucket:
        """The size in pixels that the picture is cut to."""
        return bucket_of(picture.width, picture.height, self.resolution, self.bucket_step, self.factor)

    def size(self, picture: Picture, flip: bool = False, crop: int = 0) -> PictureSize:
        """What SDXL is told about a view: the picture's size, the crop's corner in the resized picture, and the bucket."""
        bucket = self.bucket(picture)
        place = crop_of(picture.width, picture.height, bucket, crop, flip)
        return PictureSize((picture.height, picture.width), (place.top, place.left), (bucket.height, bucket.width))

    def prepare(self, pictures: Iterable[Picture], crops: int = 1, flip: bool = False) -> Iterator[tuple[int, int]]:
        """Encodes every view that is not there yet: `crops` crops of each picture, with `flip` also mirrored.

        Yields (done, total), first of all what was there. Pictures that cannot be read end up in `skipped`. Raises
        `TrainingFailed` where the disk is full or the autoencoder overflows.
        """
        wanted = {
            view.file_name: view
            for picture in pictures
            for mirrored in ((False, True) if flip else (False,))
            for crop in range(crops)
            for view in [View(picture, self.bucket(picture), mirrored, crop)]
        }
        clear_temporaries(self.folder, older_than=DAY)
        missing = [view for name, view in wanted.items() if not _is_whole(self.folder / name)]
        done = len(wanted) - len(missing)
        yield done, len(wanted)
        with ThreadPoolExecutor(WORKERS) as pool:
            for views in _batches(missing):
                self._encode(views, pool)
                done += len(views)
                yield done, len(wanted)

    def get(self, picture: Picture, flip: bool = False, crop: int = 0) -> tuple[Tensor, Tensor]:
        """(mean, log-variance) of a view, each [c, h, w] float32 on the CPU.

        Encodes it where it is missing. Raises `UnreadablePicture` where that fails.
        """
        view = View(picture, self.bucket(picture), flip, crop)
        tensors = _read(self.folder / view.file_name)
        if tensors is None or not all(self._fits(tensors.get(name), view.bucket) for name in ("mean", "logvar")):
            with ThreadPoolExecutor(1) as pool:
                tensors = self._encode([view], pool).get(view)
            if tensors is None:
                raise UnreadablePicture(picture.path, dict(self.skipped)[picture.path])
        return tensors["mean"], tensors["logvar"]

    def _fits(self, tensor: Tensor | None, bucket: Bucket) -> bool:
        cells = (bucket.height // self.factor, bucket.width // self.factor)
        return tensor is not None and tensor.dtype == torch.float32 and tensor.shape[1:] == cells

    def _encode(self, views: Sequence[View], pool: ThreadPoolExecutor) -> dict[View, dict[str, Tensor]]:
        """Encodes and saves views of one bucket; those of unreadable pictures are left out and noted."""
        pixels = {}
        for view, result in zip(views, pool.map(_pixels, views), strict=True):
            if isinstance(result, Tensor):
                pixels[view] = result
            elif all(path != view.picture.path for path, _ in self.skipped):
                self.skipped.append((view.picture.path, result.reason))
        if not pixels:
            return {}
        means, logvars = self.host.encode_pictures(torch.stack(list(pixels.values())))
        encoded = {}
        for view, mean, logvar in zip(pixels, means.float().cpu(), logvars.float().cpu(), strict=True):
            moments = (("mean", mean), ("logvar", logvar))
            if not all(tensor.isfinite().all() for _, tensor in moments):
                raise TrainingFailed(
                    f"The autoencoder (VAE) gives values that are not numbers for {view.picture.path.name}; "
                    "run it in full precision, or choose another VAE."
                )
            # copies, since safetensors takes no tensors that share memory
            encoded[view] = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in moments}
        list(pool.map(lambda view: _write(self.folder / view.file_name, encoded[view]), encoded))
        return encoded


class CaptionStore:
    """Embeddings of captions, encoded once: kept in memory, or below `folder` where one is given.

    On disk a second start finds them, and memory stays flat: 10,000 different captions are 2.4 GB for SD1, 6 GB for SDXL.
    """

    def __init__(self, host: Host, folder: Path | None = None) -> None:
        facts = host.model
        self.host = host
        self.folder = folder / _identity(VERSION, facts.hash, facts.clip_skip, str(host.dtype)) if folder else None
        self._rows: dict[str, Conditioning] = {}

    def prepare(self, captions: Iterable[str]) -> Iterator[tuple[int, int]]:
        """Encodes every caption that is not there yet. Yields (done, total)."""
        captions = list(dict.fromkeys(captions))
        missing = [caption for caption in captions if not self._has(caption)]
        done = len(captions) - len(missing)
        yield done, len(captions)
        with ThreadPoolExecutor(WORKERS) as pool:
            for start in range(0, len(missing), PROMPTS_AT_ONCE):
                batch = missing[start : start + PROMPTS_AT_ONCE]
                list(pool.map(self._keep, *zip(*self._encode(batch).items(), strict=True)))
                done += len(batch)
                yield done, len(captions)

    def conditioning(self, captions: Sequence[str]) -> Conditioning:
        """One row per caption, on the host's device. Captions that were not prepared are encoded now and not kept."""
        rows = {caption: self._find(caption) for caption in captions}
        unknown = [caption for caption, row in rows.items() if row is None]
        if unknown:
            rows |= self._encode(unknown)
        joined = Conditioning.join([rows[caption] for caption in captions])
        device = self.host.device
        return Conditioning(joined.context.to(device), None if joined.pooled is None else joined.pooled.to(device))

    def _encode(self, captions: Sequence[str]) -> dict[str, Conditioning]:
        found = self.host.encode_prompts(captions)
        pooled = found.pooled.cpu() if found.pooled is not None else None
        rows = Conditioning(found.context.cpu(), pooled)
        return {caption: rows.rows([place]) for place, caption in enumerate(captions)}

    def _path(self, caption: str) -> Path:
        return self.folder / f"{hashlib.sha256(caption.encode()).hexdigest()[:32]}.safetensors"

    def _has(self, caption: str) -> bool:
        return caption in self._rows if self.folder is None else _is_whole(self._path(caption))

    def _keep(self, caption: str, row: Conditioning) -> None:
        if self.folder is None:
            self._rows[caption] = row
        else:
            tensors = {"context": row.context} | ({} if row.pooled is None else {"pooled": row.pooled})
            _write(self._path(caption), tensors)

    def _find(self, caption: str) -> Conditioning | None:
        if self.folder is None:
            return self._rows.get(caption)
        tensors = _read(self._path(caption))
        return Conditioning(tensors["context"], tensors.get("pooled")) if tensors and "context" in tensors else None


def _identity(*facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _batches(views: Sequence[View]) -> Iterator[list[View]]:
    """Views of one bucket together, as many as the autoencoder's memory takes."""
    by_bucket: dict[Bucket, list[View]] = defaultdict(list)
    for view in views:
        by_bucket[view.bucket].append(view)
    for bucket, group in by_bucket.items():
        size = max(1, min(LARGEST_BATCH, BATCH_PIXELS // (bucket.width * bucket.height)))
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _pixels(view: View) -> Tensor | UnreadablePicture:
    try:
        return load_pixels(view.picture, view.bucket, view.crop, view.flip)
    except UnreadablePicture as error:
        return error


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    size = sum(tensor.nbytes for tensor in tensors.values())
    write_atomically(path, lambda temporary: safetensors.torch.save_file(tensors, temporary), size)


def _is_whole(path: Path) -> bool:
    """Whether the file is there with all its bytes; reads its header only."""
    try:
        with safe_open(path, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def _read(path: Path) -> dict[str, Tensor] | None:
    """The file's tensors, None where it is missing or damaged. Read, not mapped: memory does not grow with the files that were
    used."""
    try:
        return safetensors.torch.load(path.read_bytes())
    except (OSError, SafetensorError):
        return None
