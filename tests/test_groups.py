"""Folders of styles: which pictures belong together, what is left out and said, and who may be whose reference."""
from pathlib import Path

import pytest
from PIL import Image

from hypernetworks.errors import DatasetError
from hypernetworks.groups import References, group_names, read_groups, split_groups


def draw(folder: Path, count: int, tone: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (16, 16), (tone, 20 * number, 0)).save(folder / f"a red star {number}.png")


@pytest.fixture
def styles(tmp_path):
    for tone, name in enumerate(("night", "sepia", "striped")):
        draw(tmp_path / name, 3, 40 * tone)
    return tmp_path


def test_every_folder_is_a_group(styles):
    pictures = read_groups(styles).pictures
    assert group_names(pictures) == ("night", "sepia", "striped")
    assert all(picture.group == picture.path.parent.name for picture in pictures) and len(pictures) == 9


def test_a_folder_without_folders_is_one_group(styles):
    assert group_names(read_groups(styles / "sepia").pictures) == ("sepia",)


def test_empty_folders_and_single_pictures_are_left_out_and_named(styles):
    (styles / "empty").mkdir()
    draw(styles / "alone", 1, 200)
    dataset = read_groups(styles)
    assert group_names(dataset.pictures) == ("night", "sepia", "striped")
    told = " ".join(dataset.warnings)
    assert "empty" in told and "alone" in told


def test_one_picture_per_folder_cannot_be_trained_on(tmp_path):
    draw(tmp_path / "one", 1)
    draw(tmp_path / "two", 1, 50)
    with pytest.raises(DatasetError, match="holds two pictures"):
        read_groups(tmp_path)


@pytest.mark.parametrize("folder", ["", "missing"])
def test_a_folder_that_is_not_there_is_said(tmp_path, folder):
    with pytest.raises(DatasetError):
        read_groups(tmp_path / folder / "nothing")


def test_whole_groups_are_held_out_and_come_in_turns(styles):
    training, held_out = split_groups(read_groups(styles).pictures, 0.6, seed=1)
    assert len(group_names(held_out)) == 2 and not set(group_names(training)) & set(group_names(held_out))
    assert {picture.group for picture in held_out[:2]} == set(group_names(held_out))
    assert split_groups(read_groups(styles).pictures, 0.6, seed=1) == (training, held_out)


def test_one_group_is_always_left_to_train_on(styles):
    training, held_out = split_groups(read_groups(styles).pictures, 1.0, seed=0)
    assert len(group_names(training)) == 1 and len(group_names(held_out)) == 2


def test_a_reference_is_another_picture_of_the_same_group(styles):
    pictures = read_groups(styles).pictures
    references = References(pictures)
    for picture in pictures:
        drawn = [references.of(picture, 0, step, 0) for step in range(20)]
        assert {other.group for other in drawn} == {picture.group} and picture not in drawn
        assert len(set(drawn)) == 2  # both others get their turn
        assert drawn == [references.of(picture, 0, step, 0) for step in range(20)]
