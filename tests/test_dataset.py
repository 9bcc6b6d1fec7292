"""Photographs that scikit-image ships go through the dataset: formats, rotation, transparency, captions, buckets and crops."""
import os
import shutil
from pathlib import Path

import numpy
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hypernetworks.dataset import (
    Bucket,
    Picture,
    UnreadablePicture,
    bucket_of,
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
    with pytest.raises(DatasetError, match="There is no folder ~nobody-of-this-name"):
        read_folder("~nobody-of-this-name")
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


def test_camera_names_give_one_warning_that_offers_a_shared_caption(tmp_path):
    for number in range(6):
        Image.new("RGB", (8, 8), (number * 40, 0, 0)).save(tmp_path / f"IMG_{number:04}.jpg")
    dataset = read_folder(tmp_path)
    assert all((found.caption, found.caption_from) == (None, None) for found in dataset.pictures)
    (warning,) = dataset.warnings
    assert "6 of 6 pictures have no caption" in warning and "one caption for all" in warning and "and 3 more" in warning
    assert read_folder(tmp_path, shared_caption="a holiday").warnings == []


# --- pixels ---------------------------------------------------------------------------------------------------------------------


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
