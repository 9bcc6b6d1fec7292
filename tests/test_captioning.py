"""Captions written by a host's own describer, here one with the signature of A1111's interrogator (modules/interrogate.py:185)."""
import itertools
import logging

import pytest
from PIL import Image

from hypernetworks.captioning import captionable, write_captions
from hypernetworks.dataset import read_folder
from hypernetworks.errors import DatasetError, HostBusy

COLOURS = {(255, 0, 0): "a red field", (0, 0, 255): "a blue field"}


class Interrogator:
    """Answers as A1111's does: a sentence with tags behind it, or with `<error>` at its end."""

    def __init__(self, fails_at=None):
        self.seen, self.fails_at = [], fails_at

    def interrogate(self, pil_image):
        self.seen.append((pil_image.mode, pil_image.size))
        words = COLOURS[pil_image.getpixel((0, 0))]
        return words + "<error>" if len(self.seen) == self.fails_at else f"{words}, by Anna  Berg,\nink"


@pytest.fixture
def folder(tmp_path):
    """Three pictures whose names say nothing, and one that has a caption."""
    for number, (mode, colour) in enumerate([("RGB", "red"), ("RGBA", "blue"), ("P", "red")], 1):
        Image.new("RGB", (8 * number, 16), colour).convert(mode).save(tmp_path / f"IMG_000{number}.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a rose.png")
    return tmp_path


def bare(folder):
    return captionable(read_folder(folder).pictures)


def texts(folder):
    return {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.txt")}


def test_pictures_without_a_caption_get_a_text_file_that_the_dataset_reads(folder):
    interrogator = Interrogator()
    events = list(write_captions(bare(folder), interrogator.interrogate))
    red, blue = "a red field, by Anna Berg, ink", "a blue field, by Anna Berg, ink"
    assert events == [(1, 3, red), (2, 3, blue), (3, 3, red)]
    assert interrogator.seen == [("RGB", (8, 16)), ("RGB", (16, 16)), ("RGB", (24, 16))]
    assert [(picture.caption, picture.caption_from) for picture in read_folder(folder).pictures] == [
        (red, "text file"), (blue, "text file"), (red, "text file"), ("a rose", "file name"),
    ]  # fmt: skip
    assert bare(folder) == [] and "a rose.txt" not in texts(folder)


@pytest.mark.parametrize("name", ["IMG_0001.txt", "IMG_0001.TXT", "img_0001.txt"])
@pytest.mark.parametrize("text", ["", " \n"])
def test_a_text_file_that_is_there_is_never_overwritten_be_it_empty(folder, name, text):
    (folder / name).write_text(text)
    list(write_captions(bare(folder), Interrogator().interrogate))
    assert (folder / name).read_text() == text
    assert {path.name.lower() for path in folder.iterdir() if path.suffix.lower() == ".txt"} == {f"img_000{n}.txt" for n in (1, 2, 3)}


def test_a_text_file_that_appears_meanwhile_stays(folder, caplog):
    def captioner(image):
        (folder / "IMG_0001.txt").write_text("mine")
        return "theirs"

    events = list(write_captions(bare(folder), captioner))
    assert texts(folder)["IMG_0001.txt"] == "mine"
    assert [caption for *_, caption in events] == [None, "theirs", "theirs"]
    assert "IMG_0001.txt has been written meanwhile" in caplog.text


def test_pictures_of_one_name_share_one_caption(folder):
    Image.new("RGB", (8, 8), "red").save(folder / "IMG_0001.jpg")
    assert [event[:2] for event in write_captions(bare(folder), Interrogator().interrogate)] == [(1, 3), (2, 3), (3, 3)]
    assert bare(folder) == []


def test_who_leaves_stops(folder):
    interrogator = Interrogator()
    events = list(itertools.islice(write_captions(bare(folder), interrogator.interrogate), 2))
    assert len(events) == len(interrogator.seen) == len(texts(folder)) == 2


def fails(image):
    raise RuntimeError("CUDA out of memory")


@pytest.mark.parametrize("captioner, words", [
    (Interrogator(fails_at=1).interrogate, "what describes pictures here failed"),
    (lambda image: "<error>", "what describes pictures here failed"),
    (lambda image: " \n", "what describes pictures here failed"),
    (lambda image: None, "AttributeError"),
    (fails, "RuntimeError: CUDA out of memory"),
])
def test_a_describer_that_fails_is_one_sentence_that_names_the_picture(folder, captioner, words):
    with pytest.raises(DatasetError, match=rf"^IMG_0001.png could not be captioned[^\n]*{words}[^\n]*\.$"):
        list(write_captions(bare(folder), captioner))
    assert texts(folder) == {}


def test_what_was_written_before_a_failure_stays(folder):
    interrogator = Interrogator(fails_at=2)
    with pytest.raises(DatasetError, match="IMG_0002.png"):
        list(write_captions(bare(folder), interrogator.interrogate))
    assert texts(folder) == {"IMG_0001.txt": "a red field, by Anna Berg, ink\n"} and len(interrogator.seen) == 2


def test_a_hosts_own_sentence_goes_through(folder):
    def busy(image):
        raise HostBusy("The model is busy.")

    with pytest.raises(HostBusy, match="The model is busy."):
        list(write_captions(bare(folder), busy))


def test_a_damaged_picture_is_left_as_it_is(folder, caplog):
    pictures = bare(folder)
    (folder / "IMG_0001.png").write_bytes(b"damaged since")
    with caplog.at_level(logging.WARNING):
        events = list(write_captions(pictures, Interrogator().interrogate))
    assert [caption is None for *_, caption in events] == [True, False, False]
    assert "IMG_0001.png" in caplog.text and "IMG_0001.txt" not in texts(folder)


def test_a_caption_that_cannot_be_written_is_one_sentence(folder):
    def captioner(image):
        folder.rename(folder.with_name("elsewhere"))
        return "words"

    with pytest.raises(DatasetError, match=r"^The caption .*IMG_0001.txt cannot be written: .*\.$"):
        list(write_captions(bare(folder), captioner))
