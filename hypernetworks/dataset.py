"""Pictures: read from a folder, sorted into aspect-ratio buckets, cut and turned into tensors."""
from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from PIL import Image, UnidentifiedImageError

from .buckets import Bucket, Crop, bucket_of, buckets, crop_of
from .captions import Captions, find_caption
from .errors import DatasetError

__all__ = [
    "Bucket", "Captions", "Crop", "Dataset", "Picture", "UnreadablePicture",
    "bucket_of", "buckets", "crop_of", "load_pixels", "open_picture", "read_folder",
]  # fmt: skip

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # what Pillow may try: some of its readers start other programs
OTHER_PICTURES = tuple(".gif .tif .tiff .heic .heif .avif .jxl .jp2 .psd .tga .svg .dng .cr2 .nef .arw".split())
MASK_ENDINGS = ("-mask", ".mask", "-masklabel")  # of a mask's name, after its picture's; the last is OneTrainer's
SMALL = 2.0  # pictures that have to be enlarged more than this are warned about
WORKERS = 4  # threads that read pictures; hashing and decoding run outside Python's lock
NAMED = 3  # files that a warning names before it says how many more

_ORIENTATION = 0x0112  # EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Picture:
    """One picture of a dataset. `width` and `height` are in pixels after EXIF rotation; `key` is a hash of the file's bytes, `group` the
    style, subject or task that it shares with others (see groups.py). It is shown `repeats` times as often as others; `folder` is the name of
    the folder within the data set's folder that it stands in."""

    path: Path
    width: int
    height: int
    caption: str | None
    caption_from: str | None  # "text file", "file name", "folder" or None
    key: str
    group: str = ""
    mask: Path | None = None  # a file that says which places count
    repeats: int = 1
    folder: str = ""
    regularization: bool = False  # shows what the model is to keep, not what is to be learned

    @property
    def label(self) -> str:
        """What it is called among the pictures of its dataset."""
        return f"{self.folder}/{self.path.name}" if self.folder else self.path.name


@dataclass
class Dataset:
    """What a folder holds: `skipped` are (file, reason) of pictures that cannot be used, `warnings` sentences for the user."""

    pictures: list[Picture]
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def without(self, unreadable: Iterable[tuple[Path, str]]) -> Dataset:
        """The same dataset less the files of `unreadable`, which are named as skipped. Raises `DatasetError` if none is left."""
        skipped = [*self.skipped, *unreadable]
        gone = {path for path, _ in skipped}
        kept = [picture for picture in self.pictures if picture.path not in gone]
        if not kept:
            raise DatasetError(_none_usable(skipped))
        return Dataset(kept, skipped, list(self.warnings))


class UnreadablePicture(DatasetError):
    """A picture that is truncated, of another format, or gone; `reason` goes on where the file's name ends."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path.name} {reason}.")
        self.path, self.reason = path, reason


def read_folder(
    folder: str | Path,
    *,
    resolution: int = 0,
    shared_caption: str = "",
    check: bool = False,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """The pictures of a folder (not of folders within it), ordered by file name. `cat-mask.png` beside `cat.jpg` is its mask, no picture.

    Only headers are read, so a truncated file is found when it is first decoded; `check` decodes every picture now. `resolution`
    and `shared_caption` only decide which warnings are worth giving. `cache` is a folder that remembers sizes and hashes of files
    whose time and length stay the same. `progress` is called with (done, total). Raises `DatasetError` where no picture is found.
    """
    folder = Path(os.path.expanduser(folder))
    files, texts, skipped = _list(folder)
    files, masks = _without_masks(files)
    index = _Index(cache, folder)
    pictures: list[Picture] = []
    transparent: list[Path] = []
    complaints: dict[str, list[Path]] = defaultdict(list)
    for done, (path, facts) in enumerate(index.look_up(files, check), 1):
        if isinstance(facts, UnreadablePicture):
            skipped.append((path, facts.reason))
        else:
            text_file = texts.get(path.stem) or texts.get(path.stem.lower())
            caption, source, complaint = find_caption(path, text_file)
            pictures.append(Picture(path, facts.width, facts.height, caption, source, facts.key, mask=masks.get(path.stem)))
            if facts.transparent:
                transparent.append(path)
            if complaint:
                complaints[complaint].append(text_file)
        if progress:
            progress(done, len(files))
    index.save()
    if not pictures:
        raise DatasetError(_none_usable(skipped) if skipped else _nothing_found(folder))
    warnings = [*_caption_warnings(pictures, complaints, shared_caption), *_picture_warnings(pictures, transparent, resolution)]
    return Dataset(pictures, skipped, warnings)


def _list(folder: Path) -> tuple[list[os.DirEntry], dict[str, Path], list[tuple[Path, str]]]:
    """Picture files, caption files by stem (as it is and lower-cased), and pictures of formats that are not read."""
    if str(folder) == ".":  # what an empty text becomes
        raise DatasetError("No folder of pictures was given.")
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, ValueError):
        raise DatasetError(f"There is no folder {folder}.") from None
    except NotADirectoryError:
        raise DatasetError(f"{folder} is a file; a folder of pictures is needed.") from None
    except OSError as error:
        raise DatasetError(f"The folder {folder} cannot be read: {error.strerror}.") from None
    files, texts, skipped = [], {}, []
    for entry in entries:
        stem, suffix = os.path.splitext(entry.name)
        suffix = suffix.lower()
        if stem.startswith(".") or not entry.is_file():
            continue
        if suffix in SUFFIXES:
            files.append(entry)
        elif suffix == ".txt":
            texts[stem] = Path(entry.path)
            texts.setdefault(stem.lower(), Path(entry.path))
        elif suffix in OTHER_PICTURES:
            skipped.append((Path(entry.path), f"is a {suffix[1:]} file; save it as png, jpg or webp"))
    return files, texts, skipped


def _without_masks(files: Sequence[os.DirEntry]) -> tuple[list[os.DirEntry], dict[str, Path]]:
    """The pictures, and the masks by the stem of the picture that they belong to."""
    stems = {os.path.splitext(entry.name)[0] for entry in files}
    masks = {}
    for entry in files:
        stem = os.path.splitext(entry.name)[0]
        ending = next((ending for ending in MASK_ENDINGS if stem.lower().endswith(ending)), None)
        if ending and stem[: -len(ending)] in stems:
            masks[stem[: -len(ending)]] = Path(entry.path)
    taken = set(masks.values())
    return [entry for entry in files if Path(entry.path) not in taken], masks


def _nothing_found(folder: Path) -> str:
    inner = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    hint = f" Choose one of the folders within it, such as {inner[0]}, or the kind generator, which learns from all of them." if inner else ""
    return f"The folder {folder} holds no pictures (png, jpg, webp or bmp).{hint}"


def _none_usable(skipped: Sequence[tuple[Path, str]]) -> str:
    path, reason = skipped[0]
    if len(skipped) == 1:
        return f"The only picture, {path.name}, cannot be used: it {reason}."
    return f"None of the {len(skipped)} pictures can be used; {path.name}, for one, {reason}."


def _names(paths: Sequence[Path]) -> str:
    named = ", ".join(path.name for path in paths[:NAMED])
    return named if len(paths) <= NAMED else f"{named} and {len(paths) - NAMED} more"


def _caption_warnings(
    pictures: Sequence[Picture], complaints: Mapping[str, Sequence[Path]], shared_caption: str
) -> Iterator[str]:
    for complaint, files in complaints.items():
        yield f"Caption file {_names(files)}: {complaint}."
    bare = [picture.path for picture in pictures if picture.caption is None]
    if bare and not shared_caption:
        yield (
            f"{len(bare)} of {len(pictures)} pictures have no caption ({_names(bare)}): there is no text in a .txt file beside "
            "them, and their names say nothing. Give one caption for all of them, or write a .txt file for each."
        )


def _picture_warnings(pictures: Sequence[Picture], transparent: Sequence[Path], resolution: int) -> Iterator[str]:
    same: dict[str, list[Picture]] = defaultdict(list)
    small = []
    for picture in pictures:
        same[picture.key].append(picture)
        size = picture.width, picture.height
        if resolution and crop_of(*size, bucket_of(*size, resolution, 64)).scale > SMALL:
            small.append(picture.path)
    copies = [copy.path for first, *others in same.values() if others for copy in (first, *others)]
    if copies:
        yield f"These pictures are copies of each other and count once for each copy: {_names(copies)}."
    if small:
        share = f"{len(small)} of {len(pictures)} pictures"
        yield f"{share} have to be enlarged more than {SMALL:g} times and will teach blur: {_names(small)}."
    if transparent:
        yield f"Transparent parts become white in {_names(transparent)}."


# --- sizes and hashes -----------------------------------------------------------------------------------------------------------


class _Facts(NamedTuple):
    time: int  # of the last change, nanoseconds
    length: int  # bytes
    width: int
    height: int
    key: str
    transparent: bool  # it may have parts that are
    whole: bool  # it was decoded to the end


class _Index:
    """Facts about a folder's files, valid while a file's time and length stay; kept as JSON in `cache` where that is given."""

    def __init__(self, cache: Path | None, folder: Path) -> None:
        name = hashlib.sha256(os.path.abspath(folder).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        self.path = cache / f"pictures-{name}.json" if cache else None
        self.old: dict[str, list] = {}
        self.new: dict[str, list] = {}
        try:
            self.old = dict(json.loads(self.path.read_text(encoding="utf-8"))) if self.path else {}
        except (OSError, ValueError, TypeError):
            pass  # it only saves time

    def look_up(self, files: Sequence[os.DirEntry], check: bool) -> Iterator[tuple[Path, _Facts | UnreadablePicture]]:
        """Every file with its facts, or with why it cannot be read, in order."""
        with ThreadPoolExecutor(WORKERS) as pool:
            for start in range(0, len(files), 64):
                part = files[start : start + 64]
                known = [self._known(entry, check) for entry in part]
                fresh = pool.map(
                    lambda path: _read_facts(path, check),
                    [Path(e.path) for e, facts in zip(part, known, strict=True) if not facts],
                )
                for entry, facts in zip(part, known, strict=True):
                    facts = facts or next(fresh)
                    if isinstance(facts, _Facts):
                        self.new[entry.name] = list(facts)
                    yield Path(entry.path), facts

    def _known(self, entry: os.DirEntry, check: bool) -> _Facts | None:
        match self.old.get(entry.name):
            case [int(), int(), int(), int(), str(), bool(), bool()] as values:
                facts = _Facts(*values)
            case _:
                return None
        try:
            current = entry.stat()
        except OSError:
            return None
        unchanged = (facts.time, facts.length) == (current.st_mtime_ns, current.st_size)
        return facts if unchanged and (facts.whole or not check) else None

    def save(self) -> None:
        """Never fails: what is not remembered is looked up again."""
        if self.path is None or self.new == self.old:
            return
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self.new), encoding="utf-8")
            os.replace(temporary, self.path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()


def _read_facts(path: Path, check: bool) -> _Facts | UnreadablePicture:
    digest = hashlib.sha256()
    try:
        with _opened(path) as image:
            status = os.stat(path)
            width, height = image.size
            if _orientation(image) >= 5:
                width, height = height, width
            transparent = _has_alpha(image)
            if check:
                image.load()
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except UnreadablePicture as error:
        return error
    except OSError as error:
        return UnreadablePicture(path, f"cannot be opened: {error.strerror}")
    return _Facts(status.st_mtime_ns, status.st_size, width, height, digest.hexdigest()[:32], transparent, check)


# --- pixels ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file's header, decoded when asked for. Raises `UnreadablePicture` for whatever goes wrong within."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except UnidentifiedImageError:
        raise UnreadablePicture(path, "is not a png, jpg, webp or bmp picture, whatever its name says") from None
    except Image.DecompressionBombError:
        raise UnreadablePicture(path, "has more pixels than can be opened safely") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:  # what Pillow's readers raise
        system = getattr(error, "strerror", None)
        raise UnreadablePicture(path, f"cannot be opened: {system}" if system else f"is damaged: {error}") from None


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8, from the header alone: asking Pillow for a png's EXIF decodes it where there is none."""
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, struct.error):  # a broken EXIF block does not spoil the picture
        return 1
    return orientation if orientation in _TURNS else 1


def open_picture(path: Path) -> Image.Image:
    """The picture in RGB, upright, its transparent parts on white. Raises `UnreadablePicture`."""
    with _opened(path) as image:
        turn = _TURNS.get(_orientation(image))
        image.load()
        image = _rgb(image)
        return image.transpose(turn) if turn is not None else image


def open_alpha(path: Path) -> Image.Image | None:
    """How opaque each place of the picture is (L), upright; None where nothing is transparent. Raises `UnreadablePicture`."""
    with _opened(path) as image:
        if not _has_alpha(image):
            return None
        turn = _TURNS.get(_orientation(image))
        image.load()
        alpha = image.convert("RGBA").getchannel("A")
        return alpha.transpose(turn) if turn is not None else alpha


def _has_alpha(image: Image.Image) -> bool:
    return "A" in image.getbands() or "transparency" in image.info


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip
        values = numpy.asarray(image).astype(numpy.float32) / 257
        image = Image.fromarray(values.round().clip(0, 255).astype(numpy.uint8))
    elif _has_alpha(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def load_pixels(picture: Picture, bucket: Bucket, crop: int = 0, flip: bool = False) -> torch.Tensor:
    """The picture cut to `bucket`, [3, height, width] float32 in -1..1. Raises `UnreadablePicture`."""
    image = open_picture(picture.path)
    place = crop_of(image.width, image.height, bucket, crop)
    image = image.resize((place.width, place.height), Image.Resampling.LANCZOS)
    image = image.crop((place.left, place.top, place.left + bucket.width, place.top + bucket.height))
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(numpy.array(image))
    return pixels.permute(2, 0, 1).float() / 127.5 - 1
