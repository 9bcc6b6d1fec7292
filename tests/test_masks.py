"""Masks: found beside pictures, cut as the pictures are, and what they do to the gradient."""
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from hypernetworks.config import TrainingConfig, read
from hypernetworks.dataset import bucket_of, read_folder
from hypernetworks.masks import MaskStore, balanced


class Cutting:
    """As much of a latent store as masks need: buckets of about 64² pixels, 8 to a cell."""

    factor, resolution, bucket_step = 8, 64, 16

    def bucket(self, picture):
        return bucket_of(picture.width, picture.height, self.resolution, self.bucket_step, self.factor)


def picture(folder, mask=None, name="cat-mask.png", size=(64, 64), mode="RGB"):
    Image.new(mode, size, "red").save(folder / "cat.png")
    if mask is not None:
        Image.fromarray(mask).save(folder / name)
    (found,) = read_folder(folder).pictures
    return found


def store(**values):
    return MaskStore(Cutting(), read(TrainingConfig, values))


def left_half(size=64):
    mask = numpy.zeros((size, size), numpy.uint8)
    mask[:, : size // 2] = 255
    return mask


@pytest.mark.parametrize("name", ["cat-mask.png", "cat.mask.png", "cat-MASK.webp", "cat-masklabel.png"])
def test_a_mask_is_no_picture_but_belongs_to_one(tmp_path, name):
    found = picture(tmp_path, left_half(), name)
    assert found.path.name == "cat.png" and found.mask == tmp_path / name


def test_a_picture_that_is_only_called_mask_stays_one(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "venetian-mask.png")
    assert [one.path.name for one in read_folder(tmp_path).pictures] == ["venetian-mask.png"]


def test_cells_count_by_the_share_of_the_mask_that_they_hold(tmp_path):
    mask = left_half()
    mask[:, 32:36] = 255  # half of the fifth column of cells
    weights = store(masks="files", unmasked_weight=0.2).get(picture(tmp_path, mask), False, 0)
    wanted = torch.tensor([1, 1, 1, 1, 0.6, 0.2, 0.2, 0.2]).expand(1, 8, 8)
    assert torch.allclose(weights, wanted, atol=0.005)


def test_an_inverted_mask_counts_where_it_is_dark_and_a_picture_without_one_counts_whole(tmp_path):
    wanted = torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 1]).expand(1, 8, 8)
    inverted = store(masks="files", invert_masks=True)
    assert torch.equal(inverted.get(picture(tmp_path, left_half()), False, 0), wanted)
    (tmp_path / "cat-mask.png").unlink()
    assert torch.equal(inverted.get(picture(tmp_path), False, 0), torch.ones(1, 8, 8))


def test_a_mask_is_mirrored_and_cut_with_its_picture(tmp_path):
    found = picture(tmp_path, left_half(200), size=(64, 64))  # a mask of another size than its picture
    one = store(masks="files")
    assert torch.allclose(one.get(found, True, 0), one.get(found, False, 0).flip(-1))
    mask = numpy.zeros((32, 128), numpy.uint8)
    mask[:, :72] = 255
    weights = one.get(picture(tmp_path, mask, size=(128, 32)), False, 0)[0]  # cut to 96 x 48 out of 192 x 48, from 48 on
    assert weights.shape == (6, 12) and (weights[:, :7] == 1).all() and (weights[:, 8:] == 0).all()  # the edge is at 108, in cell 7


def test_transparency_is_a_mask_where_it_is_asked_for(tmp_path):
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (32, 0, 64, 64))
    image.save(tmp_path / "cat.png")
    (found,) = read_folder(tmp_path).pictures
    wanted = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0]).expand(1, 8, 8)
    assert torch.equal(store(masks="alpha").get(found, False, 0), wanted)
    assert torch.equal(store(masks="files").get(found, False, 0), torch.ones(1, 8, 8))
    Image.fromarray(255 - left_half()).save(tmp_path / "cat-mask.png")
    (found,) = read_folder(tmp_path).pictures
    assert torch.equal(store(masks="both").get(found, False, 0), wanted.flip(-1))


def test_a_transparent_part_of_a_mask_file_is_outside_of_it(tmp_path):
    mask = numpy.full((64, 64, 4), 255, numpy.uint8)
    mask[:, 32:, 3] = 0
    assert torch.equal(store(masks="files").get(picture(tmp_path, mask), False, 0)[0, 0], torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0]))


def test_balanced_masks_all_count_one_on_average(tmp_path):
    small = numpy.zeros((64, 64), numpy.uint8)
    small[:16, :16] = 255
    weights = store(masks="files", unmasked_weight=0.1).get(picture(tmp_path, small), False, 0)
    areas = balanced(torch.stack([weights, torch.ones_like(weights)]))
    assert areas.mean((1, 2, 3)).tolist() == pytest.approx([1, 1]) and float(areas[0].max() / areas[0].min()) == pytest.approx(10, rel=0.01)


MEMORY = """
import sys
from pathlib import Path
from test_masks import large_store, read_folder

def resident():
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")).split()[1]) / 1024

pictures = read_folder(sys.argv[1]).pictures
masks = large_store()
masks.prepare(pictures[:2])
before = resident()
masks.prepare(pictures * 10)
prepared = resident()
for crop in range(100):
    for picture in pictures:
        masks.get(picture, False, crop)
print(prepared - before, resident() - prepared)
"""


def large_store():
    """Of pictures of 1024², where a mask is 128² cells."""
    found = store(masks="files")
    found.latents.resolution = 1024
    return found


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts memory as Linux does")
def test_masks_hardly_take_memory_while_they_are_read_and_shown(tmp_path):
    for number in range(3):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / f"{number}.png")
        Image.fromarray(left_half(1024)).save(tmp_path / f"{number}-mask.png")
    told = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True, cwd=Path(__file__).parent, check=True).stdout
    prepared, shown = map(float, told.split())
    assert prepared < 10 and shown < 40  # MB; floats left 544 behind


def test_masks_that_cannot_be_used_are_named_with_the_reason(tmp_path):
    found = picture(tmp_path, numpy.zeros((64, 64), numpy.uint8))
    assert store(masks="files").prepare([found]) == [(found.path, "has a mask that leaves nothing of it")]
    assert store(masks="files", unmasked_weight=0.1).prepare([found]) == store(masks="none").prepare([found]) == []
    (tmp_path / "cat-mask.png").write_bytes(b"no picture")
    ((path, reason),) = store(masks="files").prepare([found])
    assert path == found.path and "cat-mask.png" in reason


def test_unused_and_missing_masks_are_said(tmp_path):
    found = picture(tmp_path, left_half())
    assert "cat-mask.png" in store(masks="none").warnings([found])[0] and store(masks="files").warnings([found]) == []
    (tmp_path / "cat-mask.png").unlink()
    assert "No picture has a mask" in store(masks="files").warnings(read_folder(tmp_path).pictures)[0]
