"""Reference pictures are kept by what they show, and told by a hash that another machine finds too."""
import hashlib

import pytest
from PIL import Image

from hypernetworks.errors import HypernetworkError, NotThere
from hypernetworks.references import References


@pytest.fixture
def references(tmp_path):
    return References(tmp_path / "kept")


@pytest.fixture
def picture():
    return Image.effect_noise((7, 5), 80).convert("RGB")


def test_the_hash_is_that_of_size_and_pixels(references, picture, tmp_path):
    picture.save(tmp_path / "one.png")
    digest = hashlib.sha256(b"7x5 " + picture.tobytes()).hexdigest()
    assert references.keep(tmp_path / "one.png") == digest[:10]
    assert references.open(digest[:10]).tobytes() == picture.tobytes()


def test_the_same_picture_in_another_file_is_the_same_reference(references, picture, tmp_path):
    picture.save(tmp_path / "one.png")
    picture.save(tmp_path / "two.bmp")
    turned = picture.transpose(Image.Transpose.ROTATE_90)  # and its file says how to turn it back
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "three.png", exif=exif)
    transparent = picture.convert("RGBA")
    transparent.save(tmp_path / "four.png")
    assert len({references.keep(tmp_path / name) for name in ("one.png", "two.bmp", "three.png", "four.png")}) == 1
    assert len(list(references.folder.iterdir())) == 1


def test_other_pixels_or_another_shape_are_another_reference(references, picture, tmp_path):
    changed, wide = picture.copy(), Image.frombytes("RGB", (5, 7), picture.tobytes())
    changed.putpixel((0, 0), (1, 2, 3))
    names = set()
    for number, image in enumerate((picture, changed, wide)):
        image.save(tmp_path / f"{number}.png")
        names.add(references.keep(tmp_path / f"{number}.png"))
    assert len(names) == 3


def test_what_is_no_picture_is_refused_with_a_sentence(references, picture, tmp_path):
    (tmp_path / "text.png").write_text("hello")
    picture.resize((200, 200)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:500])
    for name, reason in (("text.png", "is not a png, jpg"), ("half.png", "is damaged"), ("gone.png", "No such file")):
        with pytest.raises(HypernetworkError, match="The reference picture cannot be used: it ") as raised:
            references.keep(tmp_path / name)
        assert reason in str(raised.value) and str(raised.value).endswith(".")
    assert not references.folder.exists()


def test_a_missing_or_changed_reference_is_told(references, picture, tmp_path):
    with pytest.raises(NotThere, match="0123456789 is not on this computer"):
        references.open("0123456789")
    picture.save(tmp_path / "one.png")
    name = references.keep(tmp_path / "one.png")
    for content in (b"nonsense", None):
        if content is None:
            Image.new("RGB", (7, 5)).save(references.path(name))
        else:
            references.path(name).write_bytes(content)
        with pytest.raises(NotThere, match=f"{name} was changed or damaged"):
            references.open(name)
    references.keep(tmp_path / "one.png")
    assert references.open(name).tobytes() == picture.tobytes()
