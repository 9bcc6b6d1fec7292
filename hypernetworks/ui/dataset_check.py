"""What "Check pictures" shows: every picture with its caption to edit, the sizes they are trained at, and what is odd."""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..dataset import Bucket, Dataset, Picture, UnreadablePicture, bucket_of, open_picture
from ..errors import DatasetError
from ..groups import group_names, in_turns
from .markup import data_uri, escape, note, plural

SHOWN = 200  # pictures on the page; all are trained on
SIDE = 256  # pixels of a thumbnail
NAMED = 5  # files that are named before "and so on"


def report(folder: Path, dataset: Dataset, resolution: int, bucket_step: int, factor: int, shared_caption: str = "") -> str:
    """The whole check as HTML. `resolution` and `bucket_step` in pixels, `factor` is pixels per latent cell."""
    buckets = Counter(bucket_of(picture.width, picture.height, resolution, bucket_step, factor) for picture in dataset.pictures)
    shown = in_turns(dataset.pictures)[:SHOWN]
    with ThreadPoolExecutor(4) as pool:
        cards = "".join(pool.map(lambda picture: _card(picture, shared_caption), shown))
    rest = len(dataset.pictures) - len(shown)
    more = note(f"{plural(rest, 'more picture')} will be trained on too; edit their captions in the text files.", "hint") if rest else ""
    return (
        f'<div class="hypernetworks-report" data-folder="{escape(str(folder))}">{_summary(dataset, shared_caption)}{_sizes(buckets)}'
        f'{_complaints(dataset)}<div class="hypernetworks-pictures">{cards}</div>{more}</div>'
    )


def _summary(dataset: Dataset, shared_caption: str) -> str:
    captioned = sum(picture.caption is not None for picture in dataset.pictures)
    missing = len(dataset.pictures) - captioned
    if not missing:
        captions = "each has a caption"
    elif shared_caption:
        captions = f"{missing} without a caption of their own get “{shared_caption}”"
    else:
        captions = f"{missing} without a caption"
    masked = sum(picture.mask is not None for picture in dataset.pictures)
    masks = f" {plural(masked, 'picture')} with a mask." if masked else ""
    groups = len(group_names(dataset.pictures))
    where = f" in <strong>{plural(groups, 'folder')}</strong>" if groups > 1 else ""
    return f'<p class="hypernetworks-summary"><strong>{plural(len(dataset.pictures), "picture")}</strong>{where}, {escape(captions)}.{masks}</p>'


def _sizes(buckets: Counter[Bucket]) -> str:
    """Which sizes the pictures are cut to, in words for one, else as a table."""
    sizes = buckets.most_common()
    if len(sizes) == 1:
        bucket = sizes[0][0]
        return f"<p>All are trained at {bucket.width} × {bucket.height} pixels.</p>"
    rows = "".join(f"<tr><td>{bucket.width} × {bucket.height}</td><td>{count}</td></tr>" for bucket, count in sizes)
    return f'<table class="hypernetworks-sizes"><thead><tr><th>Trained at (pixels)</th><th>Pictures</th></tr></thead><tbody>{rows}</tbody></table>'


def _complaints(dataset: Dataset) -> str:
    notes = [note(warning, "warning") for warning in dataset.warnings]
    if dataset.skipped:
        named = "; ".join(f"{path.name} {reason}" for path, reason in dataset.skipped[:NAMED])
        more = f"; and {len(dataset.skipped) - NAMED} more" if len(dataset.skipped) > NAMED else ""
        notes.append(note(f"{plural(len(dataset.skipped), 'file is', 'files are')} left out: {named}{more}.", "warning"))
    return "".join(notes)


def _card(picture: Picture, shared_caption: str) -> str:
    name = escape(picture.label)
    try:
        image = f'<img src="{data_uri(open_picture(picture.path), SIDE)}" alt="{name}">'
    except UnreadablePicture as error:
        image = f'<span class="hypernetworks-unreadable">{escape(error.reason)}</span>'
    hint = escape(shared_caption or "no caption: say what the picture shows")
    return (
        f'<figure><div class="hypernetworks-thumbnail">{image}</div>'
        f'<figcaption title="{name}">{name} <small>{picture.width} × {picture.height}</small></figcaption>'
        f'<textarea rows="3" data-picture="{name}" aria-label="Caption of {name}" placeholder="{hint}">{escape(picture.caption or "")}</textarea></figure>'
    )


def read_edits(text: str) -> tuple[Path, dict[str, str]] | None:
    """Captions that were edited on the page, as the page's script sends them: a folder, and file names with their new captions."""
    try:
        edits = json.loads(text or "{}")
        folder, captions = edits["folder"], edits["captions"]
    except (ValueError, TypeError, KeyError):
        return None
    if not isinstance(folder, str) or not isinstance(captions, dict) or not captions:
        return None
    return Path(folder), {str(name): str(caption) for name, caption in captions.items()}


def save_captions(dataset: Dataset, captions: Mapping[str, str]) -> list[Path]:
    """Writes captions, by file name, into text files beside the pictures. Only pictures of the dataset get one.

    Raises `DatasetError` where a file cannot be written.
    """
    written = []
    for picture in dataset.pictures:
        caption = captions.get(picture.label)
        if caption is None or caption.strip() == (picture.caption or ""):
            continue
        path = _text_file(picture.path)
        try:
            path.write_text(caption.strip() + "\n", encoding="utf-8")
        except OSError as error:
            raise DatasetError(f"The caption {path} cannot be written: {error.strerror}.") from None
        written.append(path)
    return written


def _text_file(picture: Path) -> Path:
    """The picture's caption file as it is spelled now (`01.TXT` is one too), or as a new one is called."""
    path = picture.with_suffix(".txt")
    alike = (entry for entry in picture.parent.iterdir() if entry.name.lower() == path.name.lower())
    return path if path.exists() else next(alike, path)
