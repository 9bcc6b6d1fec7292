"""How often which picture is shown: numbered folders and regularisation pictures."""
from collections import Counter

import pytest
from PIL import Image

from hypernetworks.dataset import Bucket, Picture
from hypernetworks.errors import DatasetError
from hypernetworks.groups import read_groups
from hypernetworks.plan import Plan
from hypernetworks.repeats import hands_for, numbered, read_pictures

SQUARE, WIDE = Bucket(128, 128), Bucket(192, 96)


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (len(path.name), 0, 0)).save(path)


@pytest.mark.parametrize("name, wanted", [
    ("10_ink", (10, "ink")), ("3_sks dog", (3, "sks dog")), ("1_2_b", (1, "2_b")), ("0_off", (0, "off")),
    ("ink", None), ("10_", None), ("_ink", None), ("10 ink", None), ("99999_ink", None),
])
def test_the_number_of_a_folder(name, wanted):
    assert numbered(name) == wanted


def test_numbered_folders_are_read_beside_the_folders_own_pictures(tmp_path):
    save(tmp_path / "loose.png")
    save(tmp_path / "10_ink drawing" / "IMG_0001.png")
    save(tmp_path / "2_oil" / "a cat.png")
    save(tmp_path / "0_not now" / "x y.png")
    save(tmp_path / "other" / "x y.png")
    found = {picture.label: (picture.repeats, picture.caption) for picture in read_pictures(tmp_path).pictures}
    assert found == {"loose.png": (1, "loose"), "10_ink drawing/IMG_0001.png": (10, "ink drawing"), "2_oil/a cat.png": (2, "a cat")}


def test_without_numbered_folders_a_folder_is_what_it_was(tmp_path):
    with pytest.raises(DatasetError, match="There is no folder"):
        read_pictures(tmp_path / "nowhere")
    (tmp_path / "5_empty").mkdir()
    with pytest.raises(DatasetError, match="5_empty"):
        read_pictures(tmp_path)


def test_a_generators_folders_may_be_numbered(tmp_path):
    for name in ("5_ink", "oil"):
        save(tmp_path / name / "a.png")
        save(tmp_path / name / "b.png")
    found = {picture.group: picture.repeats for picture in read_groups(tmp_path).pictures}
    assert found == {"ink": 5, "oil": 1}


def pictures(*repeats, regular=0):
    from pathlib import Path

    own = [Picture(Path(f"{i}.png"), 8, 8, None, None, str(i), repeats=times) for i, times in enumerate(repeats)]
    return own + [Picture(Path(f"r{i}.png"), 8, 8, None, None, f"r{i}", regularization=True) for i in range(regular)]


def shown(found, buckets, epochs, batch_size=1):
    hands = hands_for(found, buckets)
    plan = Plan([buckets[hand[0]] for hand in hands], batch_size, 0, hands=hands)
    return Counter(sample.picture for index in range(plan.batches_in(epochs)) for sample in plan.batch(index))


def test_repeated_pictures_are_shown_that_often():
    assert shown(pictures(1, 3, 2), [SQUARE] * 3, epochs=5) == {0: 5, 1: 15, 2: 10}


@pytest.mark.parametrize("regular", [1, 3, 4])
def test_few_regularisation_pictures_are_shown_as_often_as_the_others_together(regular):
    found = pictures(1, 1, 2, regular=regular)
    counts = shown(found, [SQUARE] * len(found), epochs=3)
    kept = [counts[number] for number in range(3, len(found))]
    assert sum(kept) == counts[0] + counts[1] + counts[2] == 12 and max(kept) - min(kept) <= 3


def test_many_regularisation_pictures_take_turns():
    found = pictures(1, 1, regular=10)
    counts = shown(found, [SQUARE] * len(found), epochs=5)
    assert counts[0] == counts[1] == 5 and [counts[number] for number in range(2, 12)] == [1] * 10


def test_regularisation_pictures_keep_to_their_buckets():
    found = pictures(1, 1, 1, 1, regular=8)
    buckets = [SQUARE] * 4 + [SQUARE] * 6 + [WIDE] * 2
    hands = hands_for(found, buckets)
    assert all(len({buckets[number] for number in hand}) == 1 for hand in hands)
    places = Counter(buckets[hand[0]] for hand in hands if found[hand[0]].regularization)
    assert places == {SQUARE: 3, WIDE: 1}


def test_plain_pictures_have_a_place_each():
    assert hands_for(pictures(1, 1, 1), [SQUARE] * 3) == [[0], [1], [2]]
