"""Captions: found in a text file beside the picture or in the picture's name, and written anew for each sample."""
from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple, Protocol

LONGEST_FILE = 1 << 16  # bytes; text encoders read a few hundred

# Words in names that cameras and programs give. Names of these words and numbers alone say nothing about the picture.
_MACHINES = frozenset(
    "img imgp image images picture pictures pic pict photo photos foto bild dsc dscn dscf dscim mg pxl mvimg mvi pano vid dji "
    "gopr cimg kimg hpim sam wp win fb received snapchat whatsapp telegram signal untitled unnamed download comfyui scan "
    "微信图片 截图 截屏 屏幕截图".split()
)
_FILLERS = frozenset(
    "wa at am pm um uhr e o n copy kopie edited edit bearbeitet hdr raw cover mp portrait night burst frame sd jpg png".split()
)
_SCREENSHOT = re.compile(
    r"(screenshot|screen[ _-]?shot|bildschirmfoto|bildschirmaufnahme|capture d.[eé]cran|captura de pantalla)\b.*\d", re.IGNORECASE
)
_CAMERA_NUMBER = re.compile(r"_?[A-Z]{1,4}_?\d{4,}")  # P1010001, _DSC1234, IMGP0042
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)
_HASH = re.compile(r"(?=.*\d)[0-9a-f]{8,}", re.IGNORECASE)
_LEADING_NUMBERS = re.compile(r"^(?:\(?\d+\)?(?:[\s._-]+|$))+")  # "00012-", "(3) "; not "2girls"
_TRAILING_COUNTER = re.compile(r"\s*\(\d+\)$")  # "red star (2)": how file managers tell two files of one name apart


class FoundCaption(NamedTuple):
    """A caption, where it stood ("text file", "file name" or None), and what is odd about its text file."""

    caption: str | None
    source: str | None = None
    complaint: str | None = None


class Captioned(Protocol):
    """Whatever may have a caption."""

    @property
    def caption(self) -> str | None: ...


def find_caption(picture: Path, text_file: Path | None) -> FoundCaption:
    """The caption of a picture: its text file's where it has one, else its name's words."""
    if text_file is None:
        caption = caption_from_name(picture.stem)
        return FoundCaption(caption, "file name" if caption else None)
    try:
        with open(text_file, "rb") as file:
            data = file.read(LONGEST_FILE + 1)
    except OSError as error:
        return FoundCaption(None, complaint=f"cannot be opened: {error.strerror}")
    if len(data) > LONGEST_FILE:
        return FoundCaption(None, complaint=f"longer than {LONGEST_FILE >> 10} KB, which no caption is")
    text, complaint = decode_text(data)
    caption = " ".join(text.replace("\0", "").split())  # zeros: UTF-16 without its mark
    if not caption:
        return FoundCaption(None, complaint="empty")
    return FoundCaption(caption, "text file", complaint)


def decode_text(data: bytes) -> tuple[str, str | None]:
    """A text file's contents in whatever encoding they are, and what to tell the user where that had to be guessed."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace"), None
    try:
        return data.decode("utf-8-sig"), None
    except UnicodeDecodeError:
        pass
    try:
        return data.decode("cp1252"), "not UTF-8, so read as Windows-1252; save as UTF-8 if letters look wrong"
    except UnicodeDecodeError:
        return data.decode("latin-1"), "not UTF-8, so read as Latin-1; save as UTF-8 if letters look wrong"


def caption_from_name(stem: str) -> str | None:
    """The words of a file name without its suffix: "00012-a_red_star (2)" -> "a red star". None for a camera's or program's
    name."""
    if is_machine_name(stem):
        return None
    words = stem.encode("utf-8", "replace").decode()  # a name that is no valid text would upset the text encoder
    words = _UUID.sub(" ", words).strip(" _.-")
    words = _TRAILING_COUNTER.sub("", _LEADING_NUMBERS.sub("", words))
    words = words.replace("_", " ").strip(" .-")
    if " " not in words:
        words = words.replace("-", " ")
    words = " ".join(words.split())
    return None if is_machine_name(words) else words


def is_machine_name(stem: str) -> bool:
    """True for names that say nothing about the picture: IMG_1234, PXL_20230101_120000, bare numbers, hashes, and the like."""
    stem = _TRAILING_COUNTER.sub("", stem.strip())
    words = re.findall(r"[^\W\d_]+", stem.lower())
    numbered = sum(character.isdigit() for character in stem) >= 4
    if set(words) <= _MACHINES | _FILLERS and (not words or numbered or set(words) & _MACHINES):
        return True
    if _SCREENSHOT.match(stem) or _CAMERA_NUMBER.fullmatch(stem):
        return True
    return bool(_HASH.fullmatch(stem) or _UUID.fullmatch(stem)) or _is_random(stem)


def _is_random(stem: str) -> bool:
    """A single run of letters and digits that change places often, like the names that image boards give (FqW8s9eXoAA1X2z)."""
    return len(stem) >= 10 and stem.isalnum() and len(re.findall(r"\d[^\W\d]", stem)) >= 2


class Captions:
    """Writes a sample's caption: draws a template, fills in [name] and [filewords], shuffles and drops comma-separated tags, or
    drops the whole caption.

    `templates` is one text with a template per line, or several templates. `shared_caption` stands in for a picture's missing
    caption. The first `keep_tags` tags are neither shuffled nor dropped.
    """

    def __init__(
        self,
        templates: str | Sequence[str] = "[filewords]",
        name: str = "",
        shared_caption: str = "",
        shuffle_tags: bool = False,
        tag_dropout: float = 0.0,
        caption_dropout: float = 0.0,
        keep_tags: int = 0,
    ) -> None:
        lines = templates.splitlines() if isinstance(templates, str) else templates
        self.templates = [line.strip() for line in lines if line.strip()] or ["[filewords]"]
        self.name, self.shared_caption = name, shared_caption
        self.shuffle_tags, self.tag_dropout, self.caption_dropout, self.keep_tags = shuffle_tags, tag_dropout, caption_dropout, keep_tags

    @property
    def fixed(self) -> bool:
        """Whether a picture's captions are so few that all can be encoded beforehand: `possible` lists them."""
        return not self.shuffle_tags and self.tag_dropout == 0

    def possible(self, pictures: Iterable[Captioned]) -> list[str]:
        """Every caption that `write` can give for these pictures when captions are fixed, each once."""
        found = {self._fill(template, self._own(picture)): None for picture in pictures for template in self.templates}
        return [*found] + ([""] if self.caption_dropout and "" not in found else [])

    def write(self, picture: Captioned, random: Random) -> str:
        """The caption of one sample. The same state of `random` gives the same caption."""
        if random.random() < self.caption_dropout:
            return ""
        template = random.choice(self.templates)
        words = self._own(picture)
        if not self.fixed:
            tags = [tag for part in words.split(",") if (tag := part.strip())]
            kept, tags = tags[: self.keep_tags], [tag for tag in tags[self.keep_tags :] if random.random() >= self.tag_dropout]
            if self.shuffle_tags:
                random.shuffle(tags)
            words = ", ".join([*kept, *tags])
        return self._fill(template, words)

    def _own(self, picture: Captioned) -> str:
        return self.shared_caption if picture.caption is None else picture.caption

    def _fill(self, template: str, words: str) -> str:
        values = {"[name]": self.name, "[filewords]": words}
        text = re.sub(r"\[name\]|\[filewords\]", lambda match: values[match[0]], template)
        if any(placeholder in template and not value for placeholder, value in values.items()):
            text = ", ".join(
                part.strip() for part in text.split(",") if part.strip()
            )  # no comma is left hanging at an empty place
        return " ".join(text.split())
