"""Previews: what a line says of its picture, which sampler draws it, and the sheet at the end."""
import numpy
import pytest
import torch
from PIL import Image
from training_runs import equal, weights

from hypernetworks import sheets
from hypernetworks.checkpoint import RunFolder
from hypernetworks.config import TrainingConfig, read
from hypernetworks.embedded import PICTURES
from hypernetworks.errors import ConfigError, DiskFull
from hypernetworks.host import Folders, GenerationRequest
from hypernetworks.preview_lines import PreviewLine, captions_as_lines, read_lines
from hypernetworks.trainer import HypernetworkTrainer

QUICK = dict(
    name="quick", dataset=str(PICTURES / "striped"), max_steps=2, batch_size=1, preview_every=1, validation_every=0, checkpoint_every=0,
    per_layer=False, target_layers=("attn2",), warmup_steps=0, preview_steps=2, resolution=64,
)  # fmt: skip


def test_a_line_may_say_all_of_its_picture():
    text = "a fox -- in the snow, t-shirt --n blurry, low-res --w 512 --h 768 --d 0 --l 4.5 --s 30 --ss Euler a\n\n  a plain one  "
    assert read_lines(text) == [
        PreviewLine("a fox -- in the snow, t-shirt", "blurry, low-res", 512, 768, 0, 4.5, 30, "Euler a"), PreviewLine("a plain one"),
    ]  # fmt: skip
    assert read_lines("--s 3") == [PreviewLine("", steps=3)]
    assert captions_as_lines(["a --w b"]) == [PreviewLine("a --w b", literal=True)]


@pytest.mark.parametrize(("line", "words"), [
    ("a --x 3", "no --x; there are --n"), ("a --w 100", "--w cannot be '100': it takes a multiple of 8"), ("a --s 0", "a number from 1 to 200"),
    ("a --d -1", "--d cannot be '-1'"), ("a --l nan", "--l cannot be 'nan'"), ("a --s", "--s cannot be ''"), ("a --n", "--n cannot be ''"),
])
def test_a_wrong_flag_is_named(line, words):
    with pytest.raises(ConfigError, match=f"preview_prompts.*{words}"):
        read_lines(line)


def test_what_a_line_does_not_say_is_as_the_options_say():
    config = read(TrainingConfig, {"preview_steps": 7, "preview_cfg_scale": 3, "preview_seed": 5, "zero_terminal_snr": True})
    asked = PreviewLine("a", seed=0, width=64).request(config, 128)
    assert asked == GenerationRequest("a", "", 7, 3.0, 64, 128, seed=0, literal=False, zero_terminal_snr=True)
    assert PreviewLine("a", literal=True).request(config, 128).seed == 5


def test_each_sampler_draws_its_own_picture_the_same_alone_or_among_others(host):
    request = {"prompt": "a large red star on a blue background", "steps": 3, "width": 64, "height": 64, "seed": 3, "cfg_scale": 1.0}
    drawn = {}
    for name in ("", *host.samplers):
        one, two = host.generate(GenerationRequest(**request, count=2, sampler=name))
        (alone,) = host.generate(GenerationRequest(**{**request, "seed": 4}, sampler=name))
        assert numpy.abs(numpy.asarray(two).astype(int) - numpy.asarray(alone)).max() <= 1, name
        drawn[name] = one.tobytes()
    assert drawn[""] == drawn["DDIM"] and len(set(drawn.values())) == len(host.samplers) == 5
    with pytest.raises(ConfigError, match="no sampler 'Heun 9000' here; there are DDIM, Euler"):
        host.generate(GenerationRequest(**request, sampler="Heun 9000"))


def test_a_run_draws_its_lines_and_puts_them_together(host):
    lines = "a red star --w 128 --h 64 --s 1\na heart --ss Euler --d 9"
    one = HypernetworkTrainer(config=QUICK | {"preview_prompts": lines})
    events = list(one.run(host=host))
    assert [event.message for event in events if event.kind == "preview"] == ["a red star\na heart"] * 3
    folder = RunFolder(host.folders.runs, "quick")
    found = folder.previews_by_place()
    assert set(found) == {(step, number) for step in range(3) for number in (1, 2)}
    with Image.open(folder.preview_path(2, 1)) as first, Image.open(folder.preview_path(2, 2)) as second, Image.open(folder.sheet_path) as made:
        assert first.size == (128, 64) and second.size == (64, 64)
        assert made.size == (sheets.LABEL + 3 * (128 + sheets.GAP), sheets.HEAD + 2 * (64 + sheets.GAP))
        left, top = sheets.LABEL + 2 * (128 + sheets.GAP), sheets.HEAD + 64 + sheets.GAP
        assert made.crop((left, top, left + 64, top + 64)).tobytes() == second.convert("RGB").tobytes()


@pytest.mark.parametrize("error, words", [
    (torch.cuda.OutOfMemoryError("CUDA out of memory."), "The machine ran out of memory."), (DiskFull("The disk is full."), "The disk is full."),
    (OSError("the sampler's file is gone"), "the sampler's file is gone"),
])  # fmt: skip
def test_previews_that_cannot_be_drawn_end_and_the_run_goes_on(host, tmp_path, monkeypatch, error, words):
    plain = HypernetworkTrainer(config=QUICK | {"preview_every": 0, "dropout_structure": (0, 0.3, 0)})
    list(plain.run(host=host))
    host.folders = Folders.below(tmp_path / "again")
    generate, tried = type(host).generate, []

    def fails(self, request, on_step=None):
        tried.append(request)
        if len(tried) == 2:
            raise error
        return generate(self, request, on_step)

    monkeypatch.setattr(type(host), "generate", fails)
    one = HypernetworkTrainer(config=QUICK | {"preview_prompts": "a", "checkpoint_every": 1, "dropout_structure": (0, 0.3, 0)})
    found = list(one.run(host=host))
    assert [(event.kind, event.step) for event in found if event.kind in ("preview", "checkpoint", "warning", "finished")] == [
        ("preview", 0), ("warning", 1), ("checkpoint", 1), ("finished", 2),
    ]  # fmt: skip
    assert next(event.message for event in found if event.kind == "warning") == f"There are no previews from step 1 on: {words}"
    assert len(tried) == 2 and equal(weights(one.hypernetwork), weights(plain.hypernetwork))


def test_what_is_wrong_with_the_program_itself_is_raised_from_a_preview(host, monkeypatch):
    monkeypatch.setattr(type(host), "generate", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(HypernetworkTrainer(config=QUICK | {"preview_prompts": "a"}).run(host=host))


def test_a_sampler_that_is_not_there_is_said_before_anything_is_encoded(host):
    for lines, words in (("a --ss Nothing", "no sampler 'Nothing'"), ("a --q 1", "no --q")):
        with pytest.raises(ConfigError, match=words):
            next(HypernetworkTrainer(config=QUICK | {"preview_prompts": lines}).run(host=host))
    assert not (host.folders.data / "latents").exists()


def test_a_sheet_has_room_for_much_and_shows_what_is_there(tmp_path):
    pictures = {}
    for step in range(0, 400, 10):
        for number in (1, 3):
            pictures[step, number] = tmp_path / f"{step}-{number}.png"
            Image.new("RGB", (300, 600) if number == 1 else (40, 40), (step % 256, 0, 200)).save(pictures[step, number])
    made = sheets.sheet(pictures, ["über alles 猫 " * 40, "left out"])
    assert made.size == (sheets.LABEL + 12 * (128 + sheets.GAP), sheets.HEAD + 2 * (256 + sheets.GAP))
    assert made.getpixel((sheets.LABEL, sheets.HEAD)) == (0, 0, 200) and made.getpixel((sheets.LABEL + 11 * (128 + sheets.GAP), sheets.HEAD)) == (134, 0, 200)
    assert sheets.sheet({}, ["a"]) is None
