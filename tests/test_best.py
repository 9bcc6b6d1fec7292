"""Early stop and keeping the best: which validation counts, when a run ends, what its file holds."""
import math
import shutil

import pytest
import torch
from training_runs import equal, weights

from hypernetworks import files
from hypernetworks.best import Best
from hypernetworks.checkpoint import RunFolder
from hypernetworks.embedded import PICTURES
from hypernetworks.errors import ConfigError
from hypernetworks.host import Folders
from hypernetworks.networks import steps_done
from hypernetworks.run import Progress, Run
from hypernetworks.trainer import HypernetworkTrainer

QUICK = dict(
    name="quick", dataset=str(PICTURES / "striped"), max_steps=12, batch_size=1, preview_every=0, validation_every=1, checkpoint_every=0,
    per_layer=False, target_layers=("attn2",), warmup_steps=0,
)


def measured(losses, patience=2, every=10, keep=True):
    """A `Best` that has seen a validation every ten steps, and the step after which it would have ended."""
    best, ended = Best(patience, every, keep), None
    best.begin(0, None)
    for number, loss in enumerate(losses):
        best.measured(number * every, loss, lambda number=number: {"weight": torch.tensor(number)})
        if ended is None and best.has_waited(number * every):
            ended = number * every
    return best, ended


@pytest.mark.parametrize(("losses", "ended", "step"), [
    ([0.1, 0.9, 0.8, 0.7, 0.6], None, 40),  # the untrained network's loss does not count
    ([0.9, 0.5, 0.6, 0.4, 0.6, 0.5], 50, 30),
    ([0.9, 0.5, 0.5, 0.5], 30, 10),  # as low is not lower
    ([0.9, math.nan, 0.5, math.nan, math.nan], 40, 20),
    ([0.9, math.nan, math.nan, math.nan], None, 0),
])
def test_a_run_ends_after_so_many_validations_without_a_lower_one(losses, ended, step):
    best, found = measured(losses)
    assert (found, best.step) == (ended, step)
    assert measured(losses, patience=0)[1] is None
    assert (best.weights is None) == (step == 0) and (step == 0 or best.weights["weight"] == step // 10)
    assert measured(losses, keep=False)[0].weights is None


def test_what_was_best_is_kept_over_a_pause():
    before, _ = measured([0.9, 0.5, 0.6])
    after = Best(2, 10, True)
    after.begin(20, before.state())
    assert (after.step, after.loss, after.weights) == (10, 0.5, before.weights) and after.has_waited(30)
    unknown = Best(2, 10, True)
    unknown.begin(20, None)
    unknown.measured(30, 0.7, dict)
    assert unknown.step == 30 and not unknown.has_waited(40) and unknown.has_waited(50)


def test_weights_that_are_not_to_be_kept_are_not_taken_over_and_a_loss_without_them_is_none_to_compare_with():
    before, _ = measured([0.9, 0.5, 0.6])
    off = Best(2, 10, False)
    off.begin(20, before.state())
    off.measured(30, 0.4, dict)
    assert (off.step, off.loss, off.weights) == (30, 0.4, None)
    on = Best(2, 10, True)
    on.begin(30, off.state())
    on.measured(40, 0.45, lambda: {"weight": torch.tensor(4)})
    assert on.step == 40 and on.weights["weight"] == 4


@pytest.fixture
def scripted(monkeypatch):
    """Validation losses by step, in place of those that a run would measure."""
    script = {}

    def validate(run):
        run.validation_loss = script[run.step]
        with run.learner.shown():
            run.best.measured(run.step, run.validation_loss, run.network.state_dict)
        if run.learner.average is not None:
            run.best.beside(run.step, run.network.state_dict)
        return Progress("validation", run.step, run.steps, validation_loss=run.validation_loss)

    monkeypatch.setattr(Run, "_validate", validate)
    return script


def test_a_run_ends_early_and_its_file_holds_the_best_weights_and_says_so(host, tmp_path, scripted):
    scripted.update({0: 0.9, 1: 0.8, 2: 0.5, 3: 0.6, 4: 0.7, 5: 0.65, 6: 0.6})
    one = HypernetworkTrainer(config=QUICK | {"early_stop": 3, "keep_best": True})
    events = list(one.run(host=host))
    end = events[-1]
    assert (end.kind, end.step, end.validation_loss) == ("finished", 5, 0.5)
    assert "has not fallen since step 2" in end.message and "weights of step 2" in end.message
    facts = files.describe(end.path)
    assert (facts.step, facts.metadata["last_step"], facts.metadata["validation_loss"]) == (2, "5", "0.5") and steps_done(facts) == 5
    two = HypernetworkTrainer(config=QUICK)
    host.folders = Folders.below(tmp_path / "again")
    for event in two.run(host=host):
        if event.kind == "step" and event.step == 2:
            two.stop()
    assert equal(weights(files.load(end.path)), weights(two.hypernetwork))
    state = RunFolder(tmp_path / "data" / "runs", "quick").load_state()
    assert state["step"] == 5 and not equal(state["weights"], state["best"]["weights"])  # training goes on from the last step


def test_with_an_average_both_files_are_of_the_best_step(host, tmp_path, scripted):
    scripted.update({0: 0.9, 1: 0.8, 2: 0.5, 3: 0.6, 4: 0.7})
    changes = {"ema_decay": 0.5, "max_steps": 4}
    best = list(HypernetworkTrainer(config=QUICK | changes | {"keep_best": True}).run(host=host))[-1]
    host.folders = Folders.below(tmp_path / "again")
    plain = HypernetworkTrainer(config=QUICK | changes)
    for event in plain.run(host=host):
        if event.kind == "step" and event.step == 2:
            plain.stop()
    for name in ("quick.safetensors", "quick-raw.safetensors"):
        assert equal(weights(files.load(best.path.parent / name)), weights(files.load(host.folders.networks / name))), name


def test_a_run_that_goes_on_without_keeping_the_best_ends_with_its_last_weights(host, scripted):
    scripted.update({0: 0.9, 1: 0.5, 2: 0.6, 3: 0.4, 4: 0.45})
    list(HypernetworkTrainer(config=QUICK | {"max_steps": 2, "keep_best": True}).run(host=host))
    one = HypernetworkTrainer(config=QUICK | {"max_steps": 4})
    for event in one.run(host=host, resume=True):
        if event.kind == "step" and event.step == 4:
            last = weights(one.hypernetwork)
    facts = files.describe(event.path)
    assert facts.step == 4 and equal(weights(files.load(event.path)), last) and "with the weights" not in event.message


@pytest.mark.parametrize("changes", [{"loss": "l1"}, {"seed": 3}, {"validation_share": 0.3}, {"resolution": 64}, {"dataset": "fewer"}])
def test_losses_that_cannot_be_compared_with_those_before_begin_anew(host, tmp_path, scripted, changes):
    scripted.update({0: 0.9, 1: 0.1, 2: 0.2, 3: 0.8, 4: 0.7, 5: 0.75})
    options = QUICK | {"keep_best": True, "early_stop": 3}
    list(HypernetworkTrainer(config=options | {"max_steps": 2}).run(host=host))
    if "dataset" in changes:
        shutil.copytree(PICTURES / "striped", tmp_path / "fewer")
        min((tmp_path / "fewer").glob("*.png")).unlink()
        changes = {"dataset": str(tmp_path / "fewer")}
    found = list(HypernetworkTrainer(config=options | {"max_steps": 5} | changes).run(host=host, resume=True))
    assert any("best validation is looked for anew" in event.message for event in found if event.kind == "warning")
    assert (found[-1].kind, found[-1].step, found[-1].validation_loss) == ("finished", 5, 0.7) and files.describe(found[-1].path).step == 4


def test_what_does_not_change_losses_leaves_the_best_as_it_was(host, scripted):
    scripted.update({0: 0.9, 1: 0.1, 2: 0.2, 3: 0.8})
    list(HypernetworkTrainer(config=QUICK | {"keep_best": True, "max_steps": 2}).run(host=host))
    found = list(HypernetworkTrainer(config=QUICK | {"keep_best": True, "max_steps": 3, "learning_rate": "auto*0.5", "batch_size": 2}).run(host=host, resume=True))
    assert [event.message for event in found if event.kind == "warning"] == [] and files.describe(found[-1].path).step == 1


def test_without_validations_there_is_nothing_to_wait_for(host):
    for changes in ({"validation_every": 0}, {"validation_share": 0}):
        with pytest.raises(ConfigError, match=r"keep_best.*validation_every"):
            list(HypernetworkTrainer(config=QUICK | changes | {"keep_best": True}).run(host=host))


def test_a_real_validation_is_the_one_that_is_remembered(host):
    one = HypernetworkTrainer(config=QUICK | {"max_steps": 3, "keep_best": True, "learning_rate": "1e-2"})
    events = list(one.run(host=host))
    found = {event.step: event.validation_loss for event in events if event.kind == "validation" and event.step}
    lowest = min(found, key=found.get)
    assert files.describe(events[-1].path).step == lowest and events[-1].validation_loss == found[lowest]
