"""Latents and caption embeddings are encoded once. The stand-in's autoencoder averages 8 x 8 pixels, which is easy to check."""
import dataclasses
import shutil
import tracemalloc
from pathlib import Path

import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hypernetworks.dataset import Bucket, UnreadablePicture, load_pixels, read_folder
from hypernetworks.errors import TrainingFailed
from hypernetworks.host import Conditioning, ModelFacts, PictureSize
from hypernetworks.latents import BATCH_PIXELS, LARGEST_BATCH, CaptionStore, LatentStore

PHOTOGRAPHS = Path(skimage.data.__file__).parent
NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "camera.png")


class AveragingHost:
    """The parts of a host that encode, with a count of what they did."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, **facts):
        self.model = dataclasses.replace(ModelFacts("small", "abc123", "sd1", "epsilon", 128), **facts)
        self.batches = []
        self.prompts = []

    def encode_pictures(self, pixels):
        self.batches.append(tuple(pixels.shape))
        mean = torch.nn.functional.avg_pool2d(pixels, 8)
        mean = torch.cat([mean, mean[:, :1]], 1)
        return torch.cat([mean, mean - 10], 1).chunk(2, 1)  # two views of one tensor, as autoencoders give them

    def encode_prompts(self, prompts):
        self.prompts += prompts
        rows = [torch.tensor([float(len(prompt)), *prompt.encode()[:3], 0, 0, 0])[:4] for prompt in prompts]
        return Conditioning(
            torch.stack(rows)[:, None].repeat(1, 5, 1), torch.stack(rows) if self.model.family == "sdxl" else None
        )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for name in NAMES:
        image = Image.open(PHOTOGRAPHS / name)
        image.thumbnail((200, 200))
        image.save(folder / name)
    return read_folder(folder).pictures


def store(folder: Path, host: AveragingHost | None = None, step: int = 32) -> LatentStore:
    return LatentStore(folder, host or AveragingHost(), 128, step)


def encoded(host: AveragingHost) -> int:
    return sum(shape[0] for shape in host.batches)


def test_latents_are_those_of_the_pixels(pictures, tmp_path):
    latents = store(tmp_path)
    list(latents.prepare(pictures, crops=2, flip=True))
    for picture in pictures:
        for flip in (False, True):
            for crop in (0, 1):
                mean, logvar = latents.get(picture, flip, crop)
                pixels = load_pixels(picture, latents.bucket(picture), crop, flip)
                expected = torch.nn.functional.avg_pool2d(pixels, 8)
                assert mean.dtype == logvar.dtype == torch.float32
                assert torch.allclose(mean[:3], expected, atol=1e-6) and torch.equal(logvar, mean - 10)


def test_progress_ends_where_all_views_are_there(pictures, tmp_path):
    latents = store(tmp_path)
    seen = list(latents.prepare(pictures, crops=2, flip=True))
    assert seen[0] == (0, 20) and seen[-1] == (20, 20)
    assert seen == sorted(seen)


def test_a_second_start_encodes_nothing(pictures, tmp_path):
    list(store(tmp_path).prepare(pictures, flip=True))
    host = AveragingHost()
    again = store(tmp_path, host)
    assert list(again.prepare(pictures, flip=True)) == [(10, 10)]
    again.get(pictures[0], flip=True)
    assert host.batches == []


def test_only_what_is_missing_is_encoded(pictures, tmp_path):
    list(store(tmp_path).prepare(pictures[:3]))
    host = AveragingHost()
    assert list(store(tmp_path, host).prepare(pictures))[0] == (3, 5)
    assert encoded(host) == 2
    assert list(store(tmp_path, host).prepare(pictures, crops=2))[0] == (5, 10)


def test_a_renamed_picture_is_known_by_its_content(pictures, tmp_path):
    list(store(tmp_path / "latents").prepare(pictures[:1]))
    shutil.copy(pictures[0].path, tmp_path / "another name.png")
    host = AveragingHost()
    assert list(store(tmp_path / "latents", host).prepare(read_folder(tmp_path).pictures)) == [(1, 1)]


@pytest.mark.parametrize("change", [{"hash": "other"}, {"vae": "other.safetensors"}])
def test_another_model_has_latents_of_its_own(pictures, tmp_path, change):
    list(store(tmp_path).prepare(pictures))
    host = AveragingHost(**change)
    list(store(tmp_path, host).prepare(pictures))
    assert encoded(host) == 5


def test_another_size_of_bucket_has_latents_of_its_own(pictures, tmp_path):
    list(store(tmp_path).prepare(pictures))
    host = AveragingHost()
    other = LatentStore(tmp_path, host, 64, 32)
    list(other.prepare(pictures))
    assert encoded(host) == 5
    assert other.get(pictures[0])[0].shape == (4, 8, 8)


def test_the_models_own_resolution_is_the_default(pictures, tmp_path):
    assert LatentStore(tmp_path, AveragingHost()).bucket(pictures[0]) == Bucket(128, 128)


def test_pictures_of_one_bucket_are_encoded_together(pictures, tmp_path):
    host = AveragingHost()
    list(store(tmp_path, host).prepare(pictures * 1, crops=6))
    assert max(shape[0] for shape in host.batches) == LARGEST_BATCH
    assert len(host.batches) < 30 / 4
    large = AveragingHost()
    list(LatentStore(tmp_path, large, 1024, 64).prepare(pictures[:4]))
    assert max(shape[0] * shape[2] * shape[3] for shape in large.batches) <= BATCH_PIXELS


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["cut", "header", "replaced"]), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_damaged_file_is_encoded_again(pictures, tmp_path_factory, damage, place, mask):
    latents = store(tmp_path_factory.mktemp("latents"))
    expected = latents.get(pictures[1])
    (file,) = latents.folder.iterdir()
    data = bytearray(file.read_bytes())
    if damage == "cut":
        del data[int(place * len(data)) :]
    elif damage == "header":
        data[int(place * (8 + int.from_bytes(data[:8], "little")))] ^= mask
    else:
        data = bytes([mask]) * int(place * 100)
    file.write_bytes(data)
    for start in (lambda: None, lambda: list(latents.prepare(pictures[1:2]))):
        start()
        mean, logvar = latents.get(pictures[1])
        assert torch.equal(mean, expected[0]) and torch.equal(logvar, expected[1])


def test_an_unreadable_picture_is_skipped_and_named_and_the_others_go_on(pictures, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for picture in pictures:
        shutil.copy(picture.path, folder)
    (folder / "camera.png").write_bytes(pictures[1].path.read_bytes()[:5000])
    dataset = read_folder(folder)
    latents = store(tmp_path)
    assert list(latents.prepare(dataset.pictures, crops=2, flip=True))[-1] == (20, 20)
    ((path, reason),) = latents.skipped
    assert path.name == "camera.png" and reason.startswith("is damaged")
    rest = dataset.without(latents.skipped)
    assert len(rest.pictures) == 4
    for picture in rest.pictures:
        latents.get(picture, True, 1)
    latents.skipped.append((Path("another.png"), "is gone"))
    with pytest.raises(UnreadablePicture, match="camera.png is damaged"):
        latents.get(next(picture for picture in dataset.pictures if picture.path == path))


def test_an_autoencoder_that_overflows_is_named_and_nothing_is_kept(pictures, tmp_path):
    host = AveragingHost()
    host.encode_pictures = lambda pixels: (torch.full((len(pixels), 4, 16, 16), float("nan")),) * 2
    latents = store(tmp_path, host, step=128)
    with pytest.raises(TrainingFailed, match="autoencoder .* not numbers"):
        list(latents.prepare(pictures))
    assert not latents.folder.exists() or list(latents.folder.iterdir()) == []


def test_sizes_say_what_sdxl_is_told(pictures, tmp_path):
    latents = store(tmp_path)
    chelsea = next(picture for picture in pictures if picture.path.name == "chelsea.png")
    assert (chelsea.width, chelsea.height) == (200, 133)
    # the bucket is 160 x 96; covering it takes a scale of 0.8: 160 x 106, of which 10 rows are too many
    assert latents.size(chelsea) == PictureSize((133, 200), (5, 0), (96, 160))
    straight, mirrored = latents.size(chelsea, crop=1), latents.size(chelsea, flip=True, crop=1)
    assert straight.crop[0] == mirrored.crop[0]
    assert straight.crop[1] + mirrored.crop[1] == 180 - 160  # a crop beside the centre comes from a picture 9/8 as wide


def test_reading_latents_keeps_nothing_in_memory(pictures, tmp_path):
    latents = store(tmp_path)
    list(latents.prepare(pictures, crops=8))
    latents.get(pictures[0])
    tracemalloc.start()
    for _ in range(3):
        for picture in pictures:
            for crop in range(8):
                latents.get(picture, crop=crop)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 100_000


# --- captions -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_each_caption_is_encoded_once(tmp_path, on_disk, family):
    host = AveragingHost(family=family)
    captions = CaptionStore(host, tmp_path if on_disk else None)
    wanted = [f"caption {number}" for number in range(40)]
    seen = list(captions.prepare([*wanted, "", *wanted]))
    assert seen[0] == (0, 41) and seen[-1] == (41, 41) and len(seen) > 2
    found = captions.conditioning(["caption 7", "", "caption 7"])
    expected = AveragingHost(family=family).encode_prompts(["caption 7", "", "caption 7"])
    assert torch.equal(found.context, expected.context)
    assert (found.pooled is None and expected.pooled is None) or torch.equal(found.pooled, expected.pooled)
    assert len(host.prompts) == 41


def test_captions_on_disk_are_found_by_the_next_run(tmp_path):
    list(CaptionStore(AveragingHost(), tmp_path).prepare(["a cat", "a dog"]))
    host = AveragingHost()
    assert list(CaptionStore(host, tmp_path).prepare(["a cat", "a dog"])) == [(2, 2)]
    assert host.prompts == []
    for change in ({"hash": "other"}, {"clip_skip": 2}):
        other = AveragingHost(**change)
        list(CaptionStore(other, tmp_path).prepare(["a cat"]))
        assert other.prompts == ["a cat"]


def test_a_caption_that_was_not_prepared_is_encoded_on_the_spot_and_not_kept():
    host = AveragingHost()
    captions = CaptionStore(host)
    list(captions.prepare(["a cat"]))
    for _ in range(2):
        found = captions.conditioning(["a dog", "a cat", "a dog"])
        assert torch.equal(found.context, AveragingHost().encode_prompts(["a dog", "a cat", "a dog"]).context)
    assert host.prompts == ["a cat", "a dog", "a dog"]


def test_a_damaged_caption_file_is_encoded_again(tmp_path):
    captions = CaptionStore(AveragingHost(), tmp_path)
    list(captions.prepare(["a cat"]))
    (file,) = captions.folder.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert torch.equal(captions.conditioning(["a cat"]).context, AveragingHost().encode_prompts(["a cat"]).context)
    assert list(captions.prepare(["a cat"]))[0] == (0, 1)
