"""A run that replaces another: until it has saved a state of its own, what was there can be had again, whole."""
import os
import shutil

import pytest
from training_runs import equal, weights

from hypernetworks import files
from hypernetworks.checkpoint import Row, RunFolder
from hypernetworks.embedded import PICTURES
from hypernetworks.errors import NameTaken, TrainingFailed
from hypernetworks.run import Run
from hypernetworks.trainer import HypernetworkTrainer

QUICK = dict(
    name="quick", dataset=str(PICTURES / "striped"), max_steps=3, batch_size=1, preview_every=0, validation_every=0, checkpoint_every=0,
    per_layer=False, target_layers=("attn2",), warmup_steps=0,
)  # fmt: skip


def trainer(**changes):
    return HypernetworkTrainer(config=QUICK | changes)


def contents(home):
    """Every file below a folder but what is encoded once, and what is in it."""
    return {path: path.read_bytes() for path in home.rglob("*") if path.is_file() and not {"latents", "captions"} & set(path.parts)}


@pytest.fixture
def old(host, tmp_path):
    """The files of a run of three steps."""
    list(trainer(preview_every=3, preview_steps=1, preview_prompts="a star", resolution=64).run(host=host))
    return contents(tmp_path)


def ends_at(step, how, host):
    """A replacing run that ends in some way once it has done so many steps."""
    one = trainer(seed=3, max_steps=9, preview_every=1, preview_steps=1, preview_prompts="a heart", resolution=64, checkpoint_every=4)
    for event in one.run(host=host, overwrite=True):
        if event.kind == "step" and event.step == step:
            how(one)


def fails(one):
    raise TrainingFailed("on purpose")


@pytest.mark.parametrize("step", [1, 3])
def test_a_replacing_run_that_is_cancelled_before_it_saved_anything_leaves_all_as_it_was(host, tmp_path, old, step):
    ends_at(step, HypernetworkTrainer.cancel, host)
    assert contents(tmp_path) == old
    rest = list(trainer(max_steps=5).run(host=host, resume=True))
    assert [event.step for event in rest if event.kind == "step"] == [4, 5]


def test_a_replacing_run_that_fails_before_it_saved_anything_leaves_all_as_it_was(host, tmp_path, old, monkeypatch):
    monkeypatch.setattr(Run, "_train_step", fails)
    with pytest.raises(TrainingFailed, match="on purpose"):
        ends_at(1, fails, host)
    assert contents(tmp_path) == old


def test_once_it_has_saved_a_state_a_replacing_run_is_the_one_that_is_gone_on_with(host, old):
    ends_at(5, HypernetworkTrainer.cancel, host)
    folder = RunFolder(host.folders.runs, "quick")
    assert folder.load_state()["step"] == 4 and {row.step for row in folder.rows()} == {1, 2, 3, 4, 5}
    assert [path.name for path in (folder.path / "checkpoints").iterdir()] == ["step-000004.safetensors"]
    assert sorted(path.name for path in folder.path.iterdir()) == ["checkpoints", "config.json", "loss.csv", "manifest.json", "previews", "state.pt"]


def killed(host, monkeypatch, **changes):
    """A replacing run that is killed after its first step: nothing of it happens any more."""
    with monkeypatch.context() as at_death:
        at_death.setattr(RunFolder, "put_back", lambda folder: None)
        for event in trainer(seed=3, **changes).run(host=host, overwrite=True):
            if event.kind == "step":
                break


def test_after_a_replacing_run_was_killed_what_it_was_to_replace_is_gone_on_with(host, old, monkeypatch):
    killed(host, monkeypatch)
    folder = RunFolder(host.folders.runs, "quick")
    assert not folder.state_path.exists() and folder.has_state
    resumed = trainer(max_steps=5)
    rest = list(resumed.run(host=host, resume=True))
    assert [event.step for event in rest if event.kind == "step"] == [4, 5] and [row.step for row in folder.rows() if row.loss is not None] == [1, 2, 3, 4, 5]


def test_after_a_replacing_run_was_killed_the_file_is_gone_on_with_where_that_is_all_there_was(host, old, monkeypatch):
    shutil.rmtree(host.folders.runs)
    before = weights(files.load(host.folders.networks / "quick.safetensors"))
    killed(host, monkeypatch)
    resumed = trainer(max_steps=1, learning_rate="0", optimizer_arguments="weight_decay=0.0")
    list(resumed.run(host=host, resume=True))
    assert equal(weights(resumed.hypernetwork), before)


def test_a_run_that_a_killed_one_was_to_replace_is_not_replaced_unasked(host, old, monkeypatch):
    (host.folders.networks / "quick.safetensors").unlink()
    killed(host, monkeypatch)
    with pytest.raises(NameTaken, match="A run named 'quick' was left before its end"):
        next(trainer().run(host=host))


def test_nothing_is_lost_whenever_a_folder_is_killed_while_it_is_set_aside_or_put_back(tmp_path, monkeypatch):
    replace, moves, count = os.replace, [], 0

    def dies(source, target):
        if len(moves) == count:
            raise KeyboardInterrupt
        moves.append(source)
        replace(source, target)

    while True:
        run = RunFolder(tmp_path, str(count))
        run.begin({"old": True}, 0)
        run.add_row(Row(1, 0.5, None, 1e-3))
        run.checkpoint_path(1).write_bytes(b"old")
        run.save_state({"step": 1, "structure": {}, "weights": {}, "optimizer": {}})
        before = {name.relative_to(run.path) for name in run.path.rglob("*")}
        with monkeypatch.context() as deadly:
            deadly.setattr(os, "replace", dies)
            moves.clear()
            try:
                run.set_aside()
                (run.path / "loss.csv").write_bytes(b"new")
                (run.path / "result.json").write_bytes(b"new")
                run.put_back()
                break
            except KeyboardInterrupt:
                assert run.has_state
        run.put_back()
        assert {name.relative_to(run.path) for name in run.path.rglob("*")} == before
        assert run.about() == {"old": True} and run.rows() == [Row(1, 0.5, None, 1e-3)] and run.load_state()["step"] == 1
        count += 1
    assert count > 10
