"""Conditions made by a host's encoders: text, pictures and tasks become what a generator is trained with."""
from types import SimpleNamespace

import numpy
import pytest
import torch
from models import diffusers_unet
from PIL import Image
from tiny_models import make_pipeline

from hypernetworks.conditioning import condition_of_picture, condition_of_task, condition_of_text
from hypernetworks.errors import ConfigError, HypernetworkError
from hypernetworks.generator import Hypernetwork
from hypernetworks.hosts.diffusers import DiffusersHost


@pytest.fixture(scope="module")
def embedded():
    return DiffusersHost()


class Encoder:
    """Stands in for a host: keeps the pixels that it is asked to encode, and gives the first pixel's value everywhere."""

    model = SimpleNamespace(resolution=64)

    def encode_pictures(self, pixels):
        self.pixels = pixels
        return pixels[:, :1, :8, :8].half(), torch.zeros(1, 1, 8, 8)


def picture(width, height):
    """Left third red, middle green, right blue."""
    pixels = numpy.zeros((height, width, 3), numpy.uint8)
    for part in range(3):
        pixels[:, part * width // 3 : (part + 1) * width // 3, part] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_text_is_the_mean_of_its_tokens(tmp_path, family):
    make_pipeline(family).save_pretrained(tmp_path)
    host = DiffusersHost(tmp_path)
    text = condition_of_text(host, "a red star").text
    tokens = host.encode_prompts(["a red star", "a blue circle"]).context
    assert text.shape == (1, {"sd1": 32, "sdxl": 192}[family]) and text.dtype == torch.float32
    assert torch.allclose(text[0], tokens[0].sum(0) / 77, atol=1e-6)
    assert (text[0] - tokens[1].mean(0)).abs().max() > 1e-3


def test_an_empty_text_is_a_condition_too(embedded):
    assert condition_of_text(embedded, "").text.isfinite().all()


def test_a_picture_is_the_mean_of_its_scaled_latents(embedded):
    image = Image.effect_noise((128, 128), 60).convert("RGB")
    mean, _ = embedded.encode_pictures(torch.from_numpy(numpy.array(image)).permute(2, 0, 1)[None] / 127.5 - 1)
    found = condition_of_picture(embedded, image).image
    assert torch.allclose(found, mean, atol=1e-5) and found.dtype == torch.float32


def test_a_picture_is_cut_square_from_its_middle_at_the_models_resolution():
    host = Encoder()
    found = condition_of_picture(host, picture(576, 192))  # the middle third is the middle square
    assert host.pixels.shape == (1, 3, 64, 64)
    assert (host.pixels[:, 1] == 1).float().mean() > 0.9 and (host.pixels[:, 0] == -1).float().mean() > 0.9
    assert found.image.shape == (1, 1, 8, 8) and found.image.dtype == torch.float32


def test_small_and_grey_pictures_are_taken():
    host = Encoder()
    condition_of_picture(host, Image.new("L", (5, 9), 255))
    assert host.pixels.shape == (1, 3, 64, 64) and (host.pixels == 1).all()


def test_an_autoencoder_that_overflows_is_told_with_a_sentence():
    host = Encoder()
    host.encode_pictures = lambda pixels: (torch.full((1, 4, 8, 8), torch.nan), None)
    with pytest.raises(HypernetworkError, match="not numbers for the reference picture"):
        condition_of_picture(host, picture(64, 64))


def test_a_task_is_its_number_and_an_unknown_one_is_told_with_those_there_are():
    small = dict(embedding_dim=16, hidden_dim=16, basis_size=2)
    network = Hypernetwork(tasks=("denoise", "upscale"), **small).bind(diffusers_unet())
    condition = condition_of_task(network, "upscale")
    assert condition.task.tolist() == [1]
    network.generate_weights(condition)
    with pytest.raises(ConfigError, match="no task 'colour'; it knows denoise, upscale"):
        condition_of_task(network, "colour")
    with pytest.raises(ConfigError, match="no tasks"):
        condition_of_task(Hypernetwork(**small), "upscale")
