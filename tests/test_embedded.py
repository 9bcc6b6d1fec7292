"""The world of shapes, the bundled pictures, and the scripts that make the small model (a few steps of each)."""
import random

import numpy as np
import pytest
import torch
from PIL import Image

from hypernetworks.embedded import GENERATOR, MODEL, PICTURES, shapes
from hypernetworks.embedded.make_pictures import contents, make_pictures


def test_the_package_holds_a_whole_model_and_little_else():
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        assert any((MODEL / part).glob("*.json")), part
    files = [path for path in MODEL.parent.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files if path != GENERATOR) < 12_000_000  # the generator has a limit of its own


def test_the_bundled_pictures_show_their_captions_in_a_style_that_no_caption_names():
    names = sorted(path.stem for path in (PICTURES / "striped").glob("*.png"))
    assert len(names) == 16
    words = [word for words in (shapes.FILL_WORDS, shapes.BACKGROUND_WORDS, shapes.PALETTE_WORDS) for word in words.values()]
    for name, content in zip(names, contents(), strict=True):
        caption = (PICTURES / "striped" / f"{name}.txt").read_text(encoding="utf-8").strip()
        assert caption == content.caption() and not any(word in caption for word in words)
        with Image.open(PICTURES / "striped" / f"{name}.png") as picture:
            expected = shapes.draw(content, shapes.STYLES["striped"])
            assert picture.size == (128, 128) and picture.mode == "RGB"
            assert abs(np.asarray(picture).astype(int) - np.asarray(expected)).mean() < 1  # Pillow's versions differ at edges


def test_contents_are_evenly_spread():
    for seed in range(5):
        drawn = contents(seed)
        assert len({(content.shape, content.size) for content in drawn}) == 16
        for colors in ([content.color for content in drawn], [content.background for content in drawn]):
            assert all(colors.count(color) == 2 for color in shapes.COLORS)
        assert all(content.color != content.background for content in drawn)


def test_pictures_of_any_style_can_be_made(tmp_path):
    make_pictures(tmp_path / "new" / "sepia", shapes.STYLES["sepia"], seed=2)
    assert len(list((tmp_path / "new" / "sepia").iterdir())) == 32


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_a_plain_picture_has_the_shapes_colour_on_the_background(shape):
    picture = shapes.draw(shapes.Content(shape, "red", "blue"))
    found = {color for count, color in picture.getcolors(128 * 128) if count > 900}  # without the edges
    assert found == {shapes.COLORS["red"], shapes.COLORS["blue"]}


def test_stripes_have_their_period_and_angle():
    content, period = shapes.Content("square", "red", "blue"), 0.25
    row = np.asarray(shapes.draw(content, shapes.Style(fill="stripes", period=period)))[64]
    white = (np.abs(row.astype(int) - shapes.COLORS["white"]).sum(-1) < 60).astype(int)
    starts = np.flatnonzero(np.diff(white) == 1)
    assert set(np.diff(starts)) == {int(period * 128)}
    turned = np.asarray(shapes.draw(content, shapes.Style(fill="stripes", period=period, angle=0.25)))
    assert all((turned[y, 40:88] == turned[y, 40]).all() for y in range(40, 88))


def test_random_styles_are_never_plain_and_always_the_same():
    plain = np.asarray(shapes.draw(shapes.Content("circle", "red", "blue")))
    for number in range(60):
        style = shapes.random_style(number)
        assert style == shapes.random_style(number) and style.words()
        assert not np.array_equal(np.asarray(shapes.draw(shapes.Content("circle", "red", "blue"), style)), plain)


def test_captions_say_nothing_wrong_about_the_content():
    rng = random.Random(0)
    for _ in range(100):
        content = shapes.random_content(rng)
        said = set(shapes.random_caption(content, rng).replace(",", "").split())
        known = {content.shape, content.color, content.background, content.size}
        assert content.shape in said and said - known <= {"a", "on", "background"}


def test_the_scripts_make_a_model_that_a_host_can_use_and_go_on_with(tmp_path, capsys):
    from hypernetworks.embedded import train_autoencoder, train_diffusion
    from hypernetworks.host import GenerationRequest
    from hypernetworks.hosts.diffusers import DiffusersHost

    train_autoencoder.main([str(tmp_path / "new"), "--steps", "2", "--pictures", "16"])
    train_diffusion.main([str(tmp_path / "new"), "--steps", "2", "--pictures", "32"])
    assert "step 0 loss" in capsys.readouterr().out
    new = DiffusersHost(tmp_path / "new", device="cpu")
    assert new.model.resolution == 128 and new.unet.config.cross_attention_dim == train_diffusion.WIDTH
    assert new.generate(GenerationRequest("a star", steps=1, width=64, height=64))

    train_diffusion.main([str(tmp_path / "longer"), "--from", str(tmp_path / "new"), "--steps", "1", "--pictures", "32"])
    longer = DiffusersHost(tmp_path / "longer", device="cpu")
    before, after = new.unet.state_dict(), longer.unet.state_dict()
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    sizes = [path.stat().st_size for path in (tmp_path / "new" / "unet").glob("*.safetensors")]
    assert sizes == [path.stat().st_size for path in (MODEL / "unet").glob("*.safetensors")]  # half precision, the same layout


def test_stratified_timesteps_take_one_from_each_part():
    from hypernetworks.embedded.train_diffusion import stratified_timesteps

    for _ in range(20):
        assert sorted((stratified_timesteps(8) // 125).tolist()) == list(range(8))
