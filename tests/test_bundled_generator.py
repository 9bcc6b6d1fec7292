"""The generator that ships with the embedded model, on styles that it was never trained on."""
import pytest
import torch

from hypernetworks.conditioning import condition_of_picture
from hypernetworks.demo import measure
from hypernetworks.embedded import GENERATOR, shapes
from hypernetworks.embedded.make_styles import (
    FAMILIES,
    HELD_OUT,
    TRAINED,
    contents_of,
    families_of,
    held_out_styles,
    make_styles,
    training_styles,
)
from hypernetworks.generator import apply_weights
from hypernetworks.generator_files import load_generator
from hypernetworks.host import Folders
from hypernetworks.hosts.diffusers import DiffusersHost

LARGEST = 6_000_000  # bytes of what ships


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return DiffusersHost(None, Folders.below(tmp_path_factory.mktemp("home")))


def test_it_is_small_and_for_the_embedded_model(host):
    generator = load_generator(GENERATOR)
    assert GENERATOR.stat().st_size <= LARGEST
    assert generator.metadata["base_model_hash"] == host.model.hash and generator.bind(host.unet) is generator
    assert generator.structure.conditions == ("image",)


@pytest.mark.parametrize("number", held_out_styles(10)[9:] + held_out_styles(13)[12:])
def test_a_picture_of_an_unknown_style_brings_the_style_and_another_picture_does_not(host, number):
    generator = load_generator(GENERATOR)
    style, other = shapes.random_style(number), shapes.random_style(number + 1)

    def error(manner):
        picture = shapes.draw(contents_of(number, 1)[0], manner)
        with torch.no_grad():
            weights = generator(condition_of_picture(host, picture))
        return measure(host, style, lambda: apply_weights(host.unet, weights))

    right, wrong = error(style), error(other)
    assert right["loss_with"] < 0.8 * right["loss_without"]
    assert right["loss_with"] < 0.9 * wrong["loss_with"]


def test_no_style_is_both_trained_on_and_held_out():
    trained, held_out = training_styles(), held_out_styles(16)
    assert max(trained) < TRAINED <= HELD_OUT <= min(held_out) and len(held_out) == 16
    assert all(not families_of(number) for number in (*trained, *held_out))
    for name, (field, value) in FAMILIES.items():
        assert all(getattr(shapes.random_style(number), field) != value for number in trained)
        assert all(families_of(number) == [name] for number in held_out_styles(3, name))


def test_styles_are_drawn_once_and_captions_do_not_name_them(tmp_path):
    numbers = training_styles(4)
    folder = make_styles(tmp_path / "styles", numbers, 2)
    assert sorted(path.name for path in folder.iterdir()) == [f"{number:05}" for number in numbers]
    for number in numbers:
        captions = [(folder / f"{number:05}" / f"{place:02}.txt").read_text().strip() for place in (1, 2)]
        assert captions == [content.caption() for content in contents_of(number, 2)]
    first = folder / f"{numbers[0]:05}" / "01.png"
    before = first.stat().st_mtime_ns
    make_styles(folder, numbers, 2)
    assert first.stat().st_mtime_ns == before
