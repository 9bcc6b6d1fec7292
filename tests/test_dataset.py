"""Photographs that scikit-image ships go through the dataset: formats, rotation, transparency, captions, buckets and crops."""

import os
import random
import shutil
from pathlib import Path

import numpy
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hypernetworks.captions import caption_from_name, decode_text
from hypernetworks.dataset import (
    MAX_ASPECT,
    Bucket,
    Captions,
    Picture,
    UnreadablePicture,
    bucket_of,
    buckets,
    crop_of,
    load_pixels,
    open_picture,
    read_folder,
)
from hypernetworks.errors import DatasetError

PHOTOGRAPHS = Path(skimage.data.__file__).parent
CAT = PHOTOGRAPHS / "chelsea.png"  # 451 x 300, RGB
ROCKET = PHOTOGRAPHS / "rocket.jpg"  # 640 x 427
LOGO = PHOTOGRAPHS / "logo.png"  # 500 x 500, RGBA

# How EXIF's orientations 1..8 store a picture: what has to be done to the upright one (Exif 2.32, table 6).
STORED = {
    1: [],
    2: [Image.Transpose.FLIP_LEFT_RIGHT],
    3: [Image.Transpose.ROTATE_180],
    4: [Image.Transpose.FLIP_TOP_BOTTOM],
    5: [Image.Transpose.ROTATE_90, Image.Transpose.FLIP_TOP_BOTTOM],
    6: [Image.Transpose.ROTATE_90],
    7: [Image.Transpose.ROTATE_90, Image.Transpose.FLIP_LEFT_RIGHT],
    8: [Image.Transpose.ROTATE_270],
}


def picture(path: Path, caption: str | None = None) -> Picture:
    with Image.open(path) as image:
        return Picture(path, *image.size, caption, None, "")


def only(folder: Path, **options) -> Picture:
    (found,) = read_folder(folder, **options).pictures
    return found


def array(image: Image.Image) -> numpy.ndarray:
    return numpy.asarray(image).astype(int)


# --- reading --------------------------------------------------------------------------------------------------------------------


def test_every_format_is_read_whatever_the_case_of_its_suffix(tmp_path):
    with Image.open(CAT) as cat:
        for name in ("a.png", "b.JPG", "c.jpeg", "d.WebP", "e.bmp"):
            cat.save(tmp_path / name)
    dataset = read_folder(tmp_path, check=True)
    assert [picture.path.name for picture in dataset.pictures] == ["a.png", "b.JPG", "c.jpeg", "d.WebP", "e.bmp"]
    assert {(picture.width, picture.height) for picture in dataset.pictures} == {(451, 300)}
    assert dataset.skipped == []


def test_the_photographs_of_a_package_are_all_read():
    dataset = read_folder(PHOTOGRAPHS, check=True)
    assert len(dataset.pictures) == len([*PHOTOGRAPHS.glob("*.png"), *PHOTOGRAPHS.glob("*.jpg")]) > 20
    assert {path.suffix for path, _ in dataset.skipped} == {".gif", ".tif"}
    astronaut = next(picture for picture in dataset.pictures if picture.path.name == "astronaut.png")
    assert (astronaut.width, astronaut.height, astronaut.caption, astronaut.caption_from) == (512, 512, "astronaut", "file name")


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
def test_pictures_stand_upright_as_their_exif_says(tmp_path, suffix, orientation):
    upright = Image.open(CAT).resize((64, 40))
    stored = upright
    for turn in STORED[orientation]:
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"cat{suffix}", exif=exif, lossless=True, quality=100, subsampling=0)
    found = only(tmp_path)
    assert (found.width, found.height) == (64, 40)
    assert abs(array(open_picture(found.path)) - array(upright)).max() <= (40 if suffix == ".jpg" else 0)
    assert abs(array(open_picture(found.path)) - array(upright)).mean() < 3


def test_a_broken_exif_block_does_not_spoil_a_picture(tmp_path):
    Image.open(ROCKET).save(tmp_path / "rocket.jpg", exif=b"Exif\0\0nonsense that is no TIFF header")
    assert (only(tmp_path, check=True).width, only(tmp_path).height) == (640, 427)


def test_transparent_parts_become_white_and_the_user_is_told(tmp_path):
    shutil.copy(LOGO, tmp_path / "a logo.png")
    rgba = array(Image.open(LOGO).convert("RGBA"))
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert abs(array(open_picture(tmp_path / "a logo.png")) - expected).max() <= 1
    assert any("become white" in warning and "a logo.png" in warning for warning in read_folder(tmp_path).warnings)


def transparent_palette() -> Image.Image:
    image = Image.open(CAT).convert("RGB").resize((60, 40)).quantize(16)
    image.info["transparency"] = image.getpixel((0, 0))
    return image


def test_a_palette_with_a_transparent_colour_becomes_white_there(tmp_path):
    image = transparent_palette()
    image.save(tmp_path / "cat.png", transparency=image.info["transparency"])
    opened = array(open_picture(tmp_path / "cat.png"))
    hole = array(image) == image.info["transparency"]
    assert (opened[hole] == 255).all()
    palette = image.copy()
    del palette.info["transparency"]
    assert (opened[~hole] == array(palette.convert("RGB"))[~hole]).all()


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA"])
def test_other_kinds_of_png_look_as_they_do_elsewhere(tmp_path, mode):
    image = Image.open(CAT).convert(mode)
    image.save(tmp_path / "cat.png")
    assert (array(open_picture(tmp_path / "cat.png")) == array(image.convert("RGB"))).all()


def test_sixteen_bits_of_grey_keep_their_brightness(tmp_path):
    grey = numpy.asarray(Image.open(CAT).convert("L"))
    Image.fromarray(grey.astype(numpy.uint16) * 257).save(tmp_path / "cat.png")
    assert (array(open_picture(tmp_path / "cat.png")) == grey[..., None]).all()


def test_cmyk_is_turned_into_rgb(tmp_path):
    Image.open(CAT).convert("CMYK").save(tmp_path / "cat.jpg", quality=95)
    opened = array(open_picture(tmp_path / "cat.jpg"))
    assert abs(opened - array(Image.open(CAT).convert("RGB"))).mean() < 4


def truncated(path: Path, source: Path = ROCKET) -> Path:
    data = source.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def test_one_truncated_picture_among_many_is_skipped_and_named(tmp_path):
    shutil.copy(ROCKET, tmp_path / "a rocket.jpg")
    truncated(tmp_path / "half a rocket.jpg")
    truncated(tmp_path / "half a cat.png", CAT)
    dataset = read_folder(tmp_path, check=True)
    assert [picture.path.name for picture in dataset.pictures] == ["a rocket.jpg"]
    assert sorted(path.name for path, _ in dataset.skipped) == ["half a cat.png", "half a rocket.jpg"]
    assert all(reason.startswith("is damaged: ") for _, reason in dataset.skipped)


def test_without_a_check_a_truncated_picture_is_found_when_it_is_opened(tmp_path):
    path = truncated(tmp_path / "half a rocket.jpg")
    shutil.copy(ROCKET, tmp_path / "a rocket.jpg")
    dataset = read_folder(tmp_path)
    assert len(dataset.pictures) == 2
    with pytest.raises(UnreadablePicture) as caught:
        open_picture(path)
    rest = dataset.without([(caught.value.path, caught.value.reason)])
    assert [picture.path.name for picture in rest.pictures] == ["a rocket.jpg"]
    assert rest.skipped == [(path, caught.value.reason)]
    with pytest.raises(DatasetError, match="None of the 2 pictures can be used"):
        dataset.without([(picture.path, "is damaged") for picture in dataset.pictures])


@pytest.mark.parametrize(
    "content", [b"", b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"GIF89a" + bytes(20)]
)
def test_files_that_only_pretend_to_be_pictures_are_skipped(tmp_path, content):
    shutil.copy(CAT, tmp_path / "cat.png")
    (tmp_path / "pretender.png").write_bytes(content)
    dataset = read_folder(tmp_path)
    assert [path.name for path, _ in dataset.skipped] == ["pretender.png"]
    assert "is not a png, jpg, webp or bmp picture" in dataset.skipped[0][1]


def test_a_picture_of_monstrous_size_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    shutil.copy(CAT, tmp_path / "cat.png")
    with pytest.raises(DatasetError, match="has more pixels than can be opened safely"):
        read_folder(tmp_path)


def test_other_kinds_of_pictures_are_named_with_what_to_do(tmp_path):
    shutil.copy(CAT, tmp_path / "cat.png")
    (tmp_path / "holiday.heic").write_bytes(b"")
    assert read_folder(tmp_path).skipped == [(tmp_path / "holiday.heic", "is a heic file; save it as png, jpg or webp")]


def test_folders_with_nothing_in_them_get_a_sentence(tmp_path):
    with pytest.raises(DatasetError, match="There is no folder .*nowhere"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="No folder of pictures was given"):
        read_folder("")
    with pytest.raises(DatasetError, match="There is no folder"):
        read_folder(f"{tmp_path}/\0")
    with pytest.raises(DatasetError, match="holds no pictures"):
        read_folder(tmp_path)
    (tmp_path / "notes.md").write_text("hello")
    (tmp_path / "cats").mkdir()
    with pytest.raises(DatasetError, match="holds no pictures.*Choose one of the folders within it, such as cats"):
        read_folder(tmp_path)
    with pytest.raises(DatasetError, match="is a file; a folder of pictures is needed"):
        read_folder(tmp_path / "notes.md")
    truncated(tmp_path / "half.png", CAT)
    with pytest.raises(DatasetError, match="The only picture, half.png, cannot be used: it is damaged"):
        read_folder(tmp_path, check=True)


def test_hidden_files_are_not_looked_at(tmp_path):
    shutil.copy(CAT, tmp_path / "cat.png")
    (tmp_path / "._cat.png").write_bytes(b"macOS writes such files")
    dataset = read_folder(tmp_path)
    assert (len(dataset.pictures), dataset.skipped) == (1, [])


def test_copies_and_small_pictures_are_warned_about(tmp_path):
    shutil.copy(CAT, tmp_path / "cat.png")
    shutil.copy(CAT, tmp_path / "the same cat.png")
    Image.open(ROCKET).resize((200, 150)).save(tmp_path / "rocket.png")
    warnings = read_folder(tmp_path, resolution=512).warnings
    assert len(warnings) == 2
    assert "copies of each other" in warnings[0] and "cat.png, the same cat.png" in warnings[0]
    assert "enlarged more than 2 times" in warnings[1] and "rocket.png" in warnings[1]
    assert len(read_folder(tmp_path, resolution=128).warnings) == 1
    keys = {found.path.name: found.key for found in read_folder(tmp_path).pictures}
    assert keys["cat.png"] == keys["the same cat.png"] != keys["rocket.png"]


def test_progress_is_told_for_every_picture(tmp_path):
    for number in range(5):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"red {number}.png")
    seen = []
    read_folder(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


# --- what is remembered ---------------------------------------------------------------------------------------------------------


def test_unchanged_files_are_not_read_again(tmp_path):
    folder, cache = tmp_path / "pictures", tmp_path / "cache"
    folder.mkdir()
    path = Path(shutil.copy(CAT, folder / "cat.png"))
    before = read_folder(folder, cache=cache)
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert read_folder(folder, cache=cache) == before
    with pytest.raises(DatasetError):
        read_folder(folder, cache=cache, check=True)  # it was never decoded, so it is now
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(DatasetError):
        read_folder(folder, cache=cache)


def test_a_checked_picture_is_not_decoded_again(tmp_path):
    folder, cache = tmp_path / "pictures", tmp_path / "cache"
    folder.mkdir()
    path = Path(shutil.copy(CAT, folder / "cat.png"))
    before = read_folder(folder, cache=cache, check=True)
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert read_folder(folder, cache=cache, check=True) == before


@settings(max_examples=40, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=60), st.sampled_from([b"[]", b"3", b'{"cat.png": 7}', b'{"cat.png": [1, 2, 3, "a", "b", true, true]}'])
    )
)
def test_whatever_stands_in_the_memory_file_does_no_harm(tmp_path_factory, content):
    root = tmp_path_factory.mktemp("memory")
    (root / "pictures").mkdir()
    Image.new("RGB", (9, 8)).save(root / "pictures" / "cat.png")
    expected = read_folder(root / "pictures", cache=root / "cache")
    (file,) = (root / "cache").iterdir()
    file.write_bytes(content)
    assert read_folder(root / "pictures", cache=root / "cache") == expected


def test_a_memory_that_cannot_be_written_is_done_without(tmp_path):
    shutil.copy(CAT, tmp_path / "cat.png")
    assert len(read_folder(tmp_path, cache=tmp_path / "cat.png").pictures) == 1


# --- captions -------------------------------------------------------------------------------------------------------------------


def test_a_text_file_beside_the_picture_is_its_caption(tmp_path):
    shutil.copy(CAT, tmp_path / "IMG_0001.png")
    (tmp_path / "IMG_0001.txt").write_text("  a ginger cat,\n looking up \n", encoding="utf-8")
    shutil.copy(ROCKET, tmp_path / "Rocket.JPG")
    (tmp_path / "rocket.TXT").write_text("a rocket", encoding="utf-8")
    dataset = read_folder(tmp_path)
    assert [(found.caption, found.caption_from) for found in dataset.pictures] == [
        ("a ginger cat, looking up", "text file"),
        ("a rocket", "text file"),
    ]
    assert dataset.warnings == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\ufeff"), max_size=50))
def test_unicode_captions_are_read_in_every_encoding(encoding, text):
    assert decode_text(text.encode(encoding)) == (text, None)


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_at_all_are_read_as_some_text(data):
    text, _ = decode_text(data)
    assert isinstance(text, str)


def test_captions_in_old_encodings_are_read_and_their_files_named(tmp_path):
    for name, data in {
        "cafe": "ein Café".encode("cp1252"),
        "odd": b"caf\xe9 \x81",
        "empty": b" \n",
        "huge": b"a" * 100_000,
    }.items():
        Image.new("RGB", (8, len(name))).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_bytes(data)
    dataset = read_folder(tmp_path, shared_caption="a picture")
    assert [found.caption for found in dataset.pictures] == ["ein Café", None, None, "café \x81"]
    for name, words in {"cafe": "Windows-1252", "odd": "Latin-1", "empty": "empty", "huge": "longer than 64 KB"}.items():
        assert any(f"{name}.txt" in warning and words in warning for warning in dataset.warnings)


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
    "IMG_1234", "IMG-20230101-WA0003", "IMG_E1234", "img_1234 (2)", "DSC01234", "_DSC1234", "DSC_0001-Edit", "P1010001", "R0001234", "GOPR0042",
    "DJI_0001", "PXL_20230101_120000123", "PXL_20230101_120000123.PORTRAIT-01.COVER", "20230101_120000", "Screenshot 2024-01-05 at 12.00.00",
    "Screenshot_20240101-120000_Chrome", "Bildschirmfoto 2024-01-05 um 12.00.00", "WhatsApp Image 2023-01-05 at 12.30.45 (1)",
    "photo_2023-01-05_12-30-45", "signal-2023-01-05-123045_001", "FB_IMG_1672531200000", "received_123456789", "12345678_1234567_n",
    "00001-3492834982", "00000-0-IMG_1234", "ComfyUI_00012_", "image", "image0 (3)", "Untitled-1", "123", "(4)", "d41d8cd98f00b204e9800998ecf8427e",
    "123e4567-e89b-12d3-a456-426614174000", "FqW8s9eXoAA1X2z",
]  # fmt: skip


@pytest.mark.parametrize("stem", CAMERA_NAMES)
def test_a_camera_name_is_never_a_caption(stem):
    assert caption_from_name(stem) is None


def test_camera_names_give_one_warning_that_offers_a_shared_caption(tmp_path):
    for number in range(6):
        Image.new("RGB", (8, 8), (number * 40, 0, 0)).save(tmp_path / f"IMG_{number:04}.jpg")
    dataset = read_folder(tmp_path)
    assert all((found.caption, found.caption_from) == (None, None) for found in dataset.pictures)
    (warning,) = dataset.warnings
    assert "6 of 6 pictures have no caption" in warning and "one caption for all" in warning and "and 3 more" in warning
    assert read_folder(tmp_path, shared_caption="a holiday").warnings == []


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


# --- buckets and crops ----------------------------------------------------------------------------------------------------------

SIZES = st.integers(1, 6000)


@settings(deadline=None)
@given(st.integers(16, 2048), st.integers(8, 512), st.sampled_from([8, 16]))
def test_buckets_keep_to_the_area_the_step_and_the_aspect(resolution, step, factor):
    square, *oblong = buckets(resolution, step, factor)
    assert square.width == square.height and square.width % factor == 0 and abs(square.width - resolution) <= factor / 2
    assert len(set(oblong)) == len(oblong) and {Bucket(one.height, one.width) for one in oblong} == set(oblong)
    for bucket in oblong:
        assert bucket.width % factor == bucket.height % factor == 0
        assert bucket.width % (-(-step // factor) * factor) == 0
        assert 1 < max(bucket.width, bucket.height) / min(bucket.width, bucket.height) <= MAX_ASPECT
        assert 0.75 <= bucket.width * bucket.height / square.width**2 <= 1.25


def test_the_square_is_exactly_the_resolution_also_where_the_step_does_not_divide_it():
    assert buckets(128, 64) == (Bucket(128, 128),)
    assert buckets(500, 64)[0] == Bucket(496, 496)
    assert bucket_of(640, 480, 512, 64) == Bucket(576, 448)
    assert bucket_of(427, 640, 512, 64) == Bucket(384, 640)
    assert bucket_of(5000, 100, 512, 64) == Bucket(768, 384)


@given(SIZES, SIZES, st.sampled_from([128, 512, 768]), st.sampled_from([32, 64]))
def test_a_picture_gets_the_bucket_of_the_nearest_shape(width, height, resolution, step):
    bucket = bucket_of(width, height, resolution, step)

    def misfit(one: Bucket) -> float:
        return abs(numpy.log(one.width / one.height) - numpy.log(width / height))

    assert misfit(bucket) <= min(map(misfit, buckets(resolution, step))) + 1e-9


@given(SIZES, SIZES, st.integers(0, 63), st.booleans())
def test_a_crop_lies_within_the_resized_picture_and_keeps_its_shape(width, height, crop, flip):
    bucket = bucket_of(width, height, 256, 64)
    place = crop_of(width, height, bucket, crop, flip)
    assert 0 <= place.left <= place.width - bucket.width and 0 <= place.top <= place.height - bucket.height
    assert abs(place.width - width * place.scale) <= 0.5 or place.width == bucket.width
    assert abs(place.height - height * place.scale) <= 0.5 or place.height == bucket.height
    straight = crop_of(width, height, bucket, crop)
    assert place.left == (place.width - bucket.width - straight.left if flip else straight.left)


@pytest.mark.parametrize("size", [(512, 512), (451, 300), (427, 640)])
def test_the_first_crop_is_the_centre_and_all_others_differ(size):
    bucket = bucket_of(*size, 256, 64)
    centre = crop_of(*size, bucket)
    assert (
        abs(2 * centre.left - (centre.width - bucket.width)) <= 1 and abs(2 * centre.top - (centre.height - bucket.height)) <= 1
    )
    assert centre.width == bucket.width or centre.height == bucket.height
    places = [crop_of(*size, bucket, crop) for crop in range(1, 17)]
    assert len({(place.left, place.top) for place in places}) == 16
    for sizes in (
        [place.left / (place.width - bucket.width) for place in places],
        [place.top / (place.height - bucket.height) for place in places],
    ):
        assert min(sizes) < 0.1 and max(sizes) > 0.8 and abs(sum(sizes) / 16 - 0.5) < 0.1


def test_pixels_are_those_of_the_picture_scaled_to_one():
    image = array(Image.open(CAT).convert("RGB"))  # 451 x 300: cut, not resized
    pixels = load_pixels(picture(CAT), Bucket(400, 300))
    assert pixels.dtype == torch.float32 and pixels.shape == (3, 300, 400)
    expected = torch.tensor(image[:, 26:426] / 127.5 - 1).permute(2, 0, 1)
    assert torch.allclose(pixels, expected.float(), atol=1e-6)
    assert torch.equal(load_pixels(picture(CAT), Bucket(400, 300), flip=True), pixels.flip(2))
    assert crop_of(451, 300, Bucket(400, 300), flip=True).left == 25  # the corner in the mirrored picture


def test_a_resized_picture_is_a_lanczos_reduction_of_its_middle():
    pixels = load_pixels(picture(ROCKET), bucket_of(640, 427, 128, 32))
    assert pixels.shape == (3, 96, 160)
    with Image.open(ROCKET) as image:
        expected = image.convert("RGB").resize((160, 107), Image.Resampling.LANCZOS)  # 427 * 160 / 640 = 106.75
    expected = torch.tensor(array(expected)[6:102] / 127.5 - 1).permute(2, 0, 1).float()
    assert torch.allclose(pixels, expected, atol=1e-6)
