"""Captions: decoded from any encoding, drawn from file names that mean something, and written anew from templates."""
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypernetworks.captions import Captions, caption_from_name, decode_text
from hypernetworks.dataset import Picture


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\ufeff"), max_size=50))
def test_unicode_captions_are_read_in_every_encoding(encoding, text):
    assert decode_text(text.encode(encoding)) == (text, None)


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_at_all_are_read_as_some_text(data):
    text, _ = decode_text(data)
    assert isinstance(text, str)


@pytest.mark.parametrize(
    "stem, caption",
    {
        "a red star": "a red star",
        "00012-a red star": "a red star",
        "00012-3492834982-a red star": "a red star",
        "(3) a red star": "a red star",
        "a red star (2)": "a red star",
        "a_red_star": "a red star",
        "a-red-star": "a red star",
        "a t-shirt": "a t-shirt",
        "a_t-shirt": "a t-shirt",
        "2girls, sitting": "2girls, sitting",
        "route 66": "route 66",
        "photo of a scan": "photo of a scan",
        "screenshot of a game": "screenshot of a game",
        "ein rotes Café": "ein rotes Café",
        "me_a_star_123e4567-e89b-12d3-a456-426614174000": "me a star",
    }.items(),
)
def test_a_file_name_that_says_something_is_a_caption(stem, caption):
    assert caption_from_name(stem) == caption


CAMERA_NAMES = [
    "IMG_1234", "IMG-20230101-WA0003", "IMG_E1234", "img_1234 (2)", "DSC01234", "_DSC1234", "DSC_0001-Edit", "P1010001",
    "R0001234", "GOPR0042", "DJI_0001", "PXL_20230101_120000123", "PXL_20230101_120000123.PORTRAIT-01.COVER", "20230101_120000",
    "Screenshot 2024-01-05 at 12.00.00", "Screenshot_20240101-120000_Chrome", "Bildschirmfoto 2024-01-05 um 12.00.00",
    "WhatsApp Image 2023-01-05 at 12.30.45 (1)", "photo_2023-01-05_12-30-45", "signal-2023-01-05-123045_001",
    "FB_IMG_1672531200000", "received_123456789", "12345678_1234567_n", "00001-3492834982", "00000-0-IMG_1234",
    "ComfyUI_00012_", "image", "image0 (3)", "Untitled-1", "123", "(4)", "d41d8cd98f00b204e9800998ecf8427e",
    "123e4567-e89b-12d3-a456-426614174000", "FqW8s9eXoAA1X2z",
]  # fmt: skip


@pytest.mark.parametrize("stem", CAMERA_NAMES)
def test_a_camera_name_is_never_a_caption(stem):
    assert caption_from_name(stem) is None


@given(st.text(max_size=40))
def test_a_caption_from_a_name_is_tidy_text(stem):
    caption = caption_from_name(stem)
    assert caption is None or (caption and caption == " ".join(caption.split()) and caption.encode())


# --- templates ------------------------------------------------------------------------------------------------------------------

ANY_PICTURE = Picture(Path("x.png"), 8, 8, "a cat, on a mat, asleep", "text file", "0")
BARE = Picture(Path("y.png"), 8, 8, None, None, "1")


def test_templates_are_filled_in():
    captions = Captions("a photo of [name], [filewords]", name="zork")
    assert captions.write(ANY_PICTURE, random.Random(0)) == "a photo of zork, a cat, on a mat, asleep"
    assert captions.fixed


def test_a_missing_caption_leaves_no_comma_behind():
    assert Captions("[name], [filewords], drawn").possible([BARE]) == ["drawn"]
    assert Captions("a drawing, [filewords]", shared_caption="a house").possible([BARE]) == ["a drawing, a house"]
    assert Captions("[filewords]").possible([BARE]) == [""]


def test_words_in_brackets_within_a_caption_stay():
    odd = Picture(Path("x.png"), 8, 8, "[name] \\1 [filewords]", "text file", "0")
    assert Captions("[filewords] by [name]", name="zork").possible([odd]) == ["[name] \\1 [filewords] by zork"]


def test_templates_are_drawn_anew_each_time_and_evenly():
    captions = Captions("one [filewords]\n\n two [filewords] \nthree", caption_dropout=0.25)
    written = [captions.write(ANY_PICTURE, random.Random(number)) for number in range(2000)]
    assert set(written) == set(captions.possible([ANY_PICTURE]))
    assert abs(written.count("") / 2000 - 0.25) < 0.04
    assert all(abs(written.count(caption) / 2000 - 0.25) < 0.04 for caption in captions.possible([ANY_PICTURE]))


def test_tags_are_shuffled_and_dropped_as_often_as_asked():
    shuffled = Captions(shuffle_tags=True)
    orders = {shuffled.write(ANY_PICTURE, random.Random(number)) for number in range(200)}
    assert len(orders) == 6 and not shuffled.fixed
    dropped = Captions(tag_dropout=0.3)
    written = [dropped.write(ANY_PICTURE, random.Random(number)) for number in range(2000)]
    assert abs(sum("asleep" in caption for caption in written) / 2000 - 0.7) < 0.04
    assert "a cat, asleep" in written and not any("asleep, a cat" in caption for caption in written)


TAGS = st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=6), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(TAGS, st.booleans(), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5]), st.integers(0, 2**63))
def test_a_written_caption_holds_only_what_the_picture_has(tags, shuffle, tag_dropout, caption_dropout, seed):
    one = Picture(Path("x.png"), 8, 8, ", ".join(tags), "text file", "0")
    captions = Captions("[filewords]", shuffle_tags=shuffle, tag_dropout=tag_dropout, caption_dropout=caption_dropout)
    caption = captions.write(one, random.Random(seed))
    assert caption == captions.write(one, random.Random(seed))
    written = caption.split(", ") if caption else []
    assert all(written.count(tag) <= tags.count(tag) for tag in written)
    if captions.fixed:
        assert caption in captions.possible([one])
    elif tag_dropout == 0 and caption:
        assert sorted(written) == sorted(tags)


def test_the_first_tags_stay_where_they_are():
    one = Picture(Path("x.png"), 8, 8, "sks dog, a, b, c, d, e, f", "text file", "0")
    captions = Captions(shuffle_tags=True, tag_dropout=0.5, keep_tags=2)
    found = [captions.write(one, random.Random(seed)).split(", ") for seed in range(200)]
    assert all(tags[:2] == ["sks dog", "a"] for tags in found)
    rests = [tuple(tags[2:]) for tags in found]
    assert len(set(rests)) > 50 and abs(sum(map(len, rests)) / len(rests) - 2.5) < 0.3
