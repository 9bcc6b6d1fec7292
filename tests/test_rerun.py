"""A run's folder says all that it takes to repeat the run, and the run that is repeated comes to the same file."""
import json
import shutil

import pytest
from PIL import Image
from training_runs import equal, losses, weights

from hypernetworks import __version__
from hypernetworks.checkpoint import RunFolder
from hypernetworks.cli import main
from hypernetworks.config import TrainingConfig, options
from hypernetworks.dataset import read_folder
from hypernetworks.embedded import PICTURES
from hypernetworks.errors import ConfigError
from hypernetworks.files import describe, load
from hypernetworks.manifest import changes, differences, digest, manifest
from hypernetworks.rerun import Rerun
from hypernetworks.trainer import HypernetworkTrainer

QUICK = dict(
    name="quick", max_steps=3, batch_size=1, preview_every=3, preview_steps=1, preview_prompts="a star", validation_every=0, checkpoint_every=2, per_layer=False,
    warmup_steps=0, ema_decay=0.5, also_pt=True, dropout_structure=(0, 0.3, 0),
)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for file in sorted((PICTURES / "striped").iterdir())[:8]:
        shutil.copy(file, folder)
    return folder


def trained(host, pictures, stop_at=None, resume=False, **changes):
    trainer = HypernetworkTrainer(config=QUICK | {"dataset": str(pictures)} | changes)
    if stop_at:
        trainer.stop(after=stop_at)
    return list(trainer.run(host=host, resume=resume))


def test_a_folder_says_how_the_run_was_made(host, pictures):
    trained(host, pictures)
    folder = RunFolder(host.folders.runs, "quick")
    about, noted, result = folder.about(), folder.manifest(), folder.result()
    assert set(about["parts"][0]["options"]) == set(options(TrainingConfig)) and about["parts"][0]["from_step"] == 0
    assert about["surroundings"]["hypernetworks"] == __version__ and {"torch", "python", "host", "device", "threads"} <= set(about["surroundings"])
    assert set(noted) == {path.name for path in pictures.glob("*.png")} and all(set(one) == {"file", "caption"} for one in noted.values())
    assert result["ending"] == "finished" and set(result["files"]) == {"quick.safetensors", "quick-raw.safetensors"}
    assert {path.name for path in folder.path.iterdir()} >= {"config.json", "manifest.json", "result.json", "loss.csv", "state.pt", "previews", "checkpoints"}
    assert describe(host.folders.networks / "quick.safetensors").metadata["date"] == about["date"]


def test_a_run_that_is_repeated_comes_to_the_same_files_bit_for_bit(host, pictures, capsys):
    trained(host, pictures)
    folder = host.folders.runs / "quick"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["rerun", str(folder)]) == 0
    said = capsys.readouterr().out
    for name in ("quick.safetensors", "quick-raw.safetensors"):
        assert (folder / "rerun" / name).read_bytes() == (host.folders.networks / name).read_bytes()
        assert f"{name} is the same file, bit for bit." in said
    assert equal(weights(load(folder / "rerun" / "quick.pt")), weights(load(host.folders.networks / "quick.pt")))
    assert all(path.read_bytes() == data for path, data in before.items())  # what is repeated stays as it was
    assert main(["rerun", str(folder)]) == 2 and "already" in capsys.readouterr().err


def test_a_run_with_a_pause_and_other_options_afterwards_is_repeated_with_both(host, pictures):
    trained(host, pictures, stop_at=1)
    trained(host, pictures, stop_at=2, resume=True)  # the same options: no part of its own
    last = trained(host, pictures, resume=True, stop_at=4, max_steps=5, learning_rate="1e-3", noise_offset=0.1)[-1]
    assert (last.kind, last.step) == ("stopped", 4)
    folder = RunFolder(host.folders.runs, "quick")
    assert [part["from_step"] for part in folder.about()["parts"]] == [0, 2]
    original = last.path.read_bytes()
    rerun = Rerun(folder.path)
    rerun.check(host)
    assert [event.kind for event in rerun.run(host) if event.kind in ("warning", "stopped", "finished")] == ["stopped", "stopped"]
    assert (rerun.into / "quick.safetensors").read_bytes() == original
    assert "quick.safetensors is the same file, bit for bit." in rerun.compared()


def test_a_run_that_never_ended_is_repeated_as_far_as_it_was_saved(host, pictures):
    for event in HypernetworkTrainer(config=QUICK | {"dataset": str(pictures)}).run(host=host):
        if event.kind == "checkpoint":
            break  # as if killed
    rerun = Rerun(host.folders.runs / "quick")
    found = list(rerun.run(host))
    assert len(losses(found)) == 2 and "not come to its end" in rerun.compared()[0]


def test_pictures_that_were_changed_are_named(host, pictures, capsys):
    trained(host, pictures, max_steps=1, preview_every=0)
    folder = host.folders.runs / "quick"
    with Image.open(pictures / "01.png") as image:
        changed = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    changed.save(pictures / "01.png")
    (pictures / "02.txt").write_text("something else")
    (pictures / "03.png").rename(pictures / "99.png")
    assert main(["rerun", str(folder)]) == 2
    said = capsys.readouterr().err
    for sentence in ("missing: 03.png.", "new: 99.png.", "changed: 01.png.", "another caption: 02.png.", "With --anyway"):
        assert sentence in said
    assert not (folder / "rerun").exists()
    assert main(["rerun", str(folder), "--anyway"]) == 0
    said = capsys.readouterr()
    assert "missing: 03.png" in said.err and "quick.safetensors is another file." in said.out


def test_what_cannot_be_repeated_is_said(host, pictures, tmp_path):
    with pytest.raises(ConfigError, match="no folder of a run"):
        Rerun(tmp_path)
    plain = dict(max_steps=1, preview_every=0, ema_decay=0, also_pt=False)
    trained(host, pictures, **plain)
    shutil.rmtree(host.folders.runs)
    trained(host, pictures, resume=True, **plain)
    with pytest.raises(ConfigError, match="went on with the file quick.safetensors, which its folder does not hold"):
        Rerun(host.folders.runs / "quick")
    folder = RunFolder(host.folders.runs, "quick")
    folder.begin({"parts": [{"from_step": 0, "options": {"no_such": 1}, "pictures": ""}]}, 0)
    with pytest.raises(ConfigError, match="no option 'no_such'"):
        Rerun(folder.path)
    for parts in ([3], [{}], {"a": 1}, "x", [{"from_step": None, "options": {}, "pictures": ""}]):
        folder.begin({"parts": parts}, 0)
        with pytest.raises(ConfigError, match="damaged"):
            Rerun(folder.path)


def test_a_model_that_is_another_is_named(host, pictures, capsys):
    trained(host, pictures, max_steps=1, preview_every=0)
    folder = RunFolder(host.folders.runs, "quick")
    file = folder.path / "config.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps(about | {"model": {"name": "other", "hash": "0123"}, "surroundings": about["surroundings"] | {"torch": "1.0"}}))
    assert main(["rerun", str(folder.path)]) == 2 and "made with the model other (0123), and this is" in capsys.readouterr().err
    assert main(["rerun", str(folder.path), "--anyway", "--out", str(folder.path / "aside")]) == 0
    assert "torch was 1.0 and is" in capsys.readouterr().err and (folder.path / "aside" / "quick.safetensors").exists()


def test_code_that_the_folder_names_is_run_only_if_it_is_named_again(host, pictures, tmp_path, monkeypatch, capsys):
    (tmp_path / "strangers_losses.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\ndef square(a, b):\n    return (a - b) ** 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    trained(host, pictures, max_steps=1, preview_every=0)
    folder = host.folders.runs / "quick"
    file = folder / "config.json"
    about = json.loads(file.read_text())
    about["parts"][0]["options"]["loss_function"] = "strangers_losses.square"
    file.write_text(json.dumps(about))
    for flags in ([], ["--loss-function", "strangers_losses.other"]):
        assert main(["rerun", str(folder), *flags]) == 2
        assert "strangers_losses.square, which is code" in capsys.readouterr().err and not (tmp_path / "ran").exists()
    assert main(["rerun", str(folder), "--loss-function", "strangers_losses.square"]) == 0
    assert (tmp_path / "ran").exists()


def test_manifests_differ_only_where_pictures_do(pictures):
    (pictures / "04-mask.png").write_bytes((pictures / "04.png").read_bytes())
    first = manifest(read_folder(pictures).pictures)
    assert changes(first, manifest(read_folder(pictures).pictures)) == [] and "mask" in first["04.png"]
    Image.new("L", (8, 8)).save(pictures / "04-mask.png")
    second = manifest(read_folder(pictures).pictures)
    assert changes(first, second) == ["These pictures have another mask: 04.png."] and digest(first) != digest(second)
    assert changes({}, {str(number): {} for number in range(7)}) == ["These pictures are new: 0, 1, 2, 3, 4 and 2 more."]
    assert differences({"torch": "1", "gone": "2"}, {"torch": "1", "new": "3"}) == ["gone was 2 and is not there"]
