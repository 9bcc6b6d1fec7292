"""When a run goes back, where to, and how often."""
import errno
import tempfile
from pathlib import Path

import pytest
import torch
from training_runs import equal, weights

from hypernetworks import files
from hypernetworks.checkpoint import RunFolder
from hypernetworks.embedded import PICTURES
from hypernetworks.objective import Objective
from hypernetworks.recovery import SNAPSHOT_EVERY, Recovery, copied
from hypernetworks.run import Run
from hypernetworks.trainer import HypernetworkTrainer

QUICK = dict(
    name="quick", dataset=str(PICTURES / "striped"), batch_size=8, preview_every=0, validation_every=4, checkpoint_every=0, per_layer=False,
    target_layers=("attn2",), warmup_steps=0, explosion_factor=8,
)  # fmt: skip


def recovery(factor=4.0, ways=3, samples=32):
    one = Recovery(factor, ways, samples)
    one.begin(0, {"at": 0})
    return one


def good(one, steps, loss=0.1):
    for step in steps:
        assert one.trouble(step, loss) == ""
        one.confirm(step)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_a_number_is_trouble_from_the_first_step_on(loss):
    assert recovery().trouble(1, loss) == "The loss is not a number"


def test_many_times_the_lowest_loss_is_an_explosion():
    one = recovery()
    good(one, range(1, 20), 0.3)
    good(one, range(20, 30), 0.1)
    assert one.trouble(30, 0.39) == ""  # noise
    assert one.trouble(31, 0.45) == "The loss is 4.5 times what it was"
    assert one.trouble(31, 0.1) == ""


@pytest.mark.parametrize("samples, span", [(1, 32), (4, 8), (10, 4), (32, 1), (100, 1)])
def test_small_batches_are_looked_at_together(samples, span):
    for times, words in ((3.9, ""), (4.1, "The loss is 4.1 times what it was")):
        one = recovery(samples=samples)
        good(one, range(1, 200))
        assert one.trouble(200, 0.1 * (times * span - (span - 1))) == words  # so that the mean of `span` losses is that many times 0.1


def test_a_loss_that_creeps_up_is_found_out_though_no_step_stands_out():
    one = recovery(samples=4)
    good(one, range(1, 17), 0.06)
    found = [one.trouble(step, 0.06 * 1.15 ** (step - 16)) for step in range(17, 60)]
    first = next(place for place, words in enumerate(found) if words)
    assert 8 < first < 20  # 1.15 to the power of 10 is 4


def test_the_first_losses_are_not_judged():
    one = recovery(samples=4)
    assert [one.trouble(step, loss) for step, loss in enumerate([0.1] * 8 + [50.0] * 7, 1)] == [""] * 15
    assert recovery(samples=4, factor=0).trouble(1, 1e30) == ""


def test_factor_zero_minds_numbers_only():
    one = recovery(factor=0)
    good(one, range(1, 20))
    assert one.trouble(20, 1e30) == "" and one.trouble(21, float("nan"))


def test_what_exploded_is_forgotten_on_the_way_back():
    one = recovery(samples=16)
    good(one, range(1, 10))
    assert one.trouble(10, 5.0)
    one.back()
    good(one, range(1, 10))


def test_a_snapshot_is_good_once_a_later_loss_is():
    one = recovery()
    good(one, range(1, SNAPSHOT_EVERY))
    assert not one.snapshot_due(SNAPSHOT_EVERY - 1) and one.snapshot_due(SNAPSHOT_EVERY)
    one.keep(SNAPSHOT_EVERY, lambda: {"at": 50}, None)
    assert one.trouble(SNAPSHOT_EVERY + 1, float("nan")) and one.back().state == {"at": 0}
    good(one, range(1, SNAPSHOT_EVERY + 1))
    one.keep(SNAPSHOT_EVERY, lambda: {"at": 50}, None)
    one.confirm(SNAPSHOT_EVERY)  # its own loss says nothing of it
    assert one.good.state == {"at": 0}
    good(one, [SNAPSHOT_EVERY + 1])
    assert one.back().state == {"at": 50} and one.rate == 0.25


def test_weights_of_a_rising_loss_are_not_good_even_before_it_explodes():
    one = recovery(samples=16)
    good(one, range(1, 20), 0.1)
    one.keep(19, lambda: {"at": 19}, None)
    good(one, [20], 0.1)
    good(one, range(21, 30), 0.25)
    one.keep(29, lambda: {"at": 29}, None)
    good(one, range(30, 33), 0.25)
    assert one.trouble(33, 3.0) and one.back().state == {"at": 19}


def test_what_is_best_is_better_than_the_beginning_was():
    one = recovery()
    one.measured(0.2)
    for step, validation_loss in ((10, 0.3), (20, None)):
        one.keep(step, lambda step=step: {"at": step}, validation_loss)
        one.confirm(step + 1)
    assert one.fruitless and one.good.state == {"at": 20}
    one.keep(30, lambda: {"at": 30}, 0.1)
    one.confirm(31)
    assert not one.fruitless and one.best.state == {"at": 30}


def test_a_run_is_fruitless_until_a_snapshot_was_confirmed():
    one = recovery()
    one.keep(10, lambda: {"at": 10}, 0.5)
    assert one.fruitless
    one.confirm(11)
    assert not one.fruitless


def test_every_way_back_halves_the_rate_until_there_is_none():
    one = recovery(ways=3)
    rates = []
    while one.back() is not None:
        rates.append(one.rate)
    assert rates == [0.5, 0.25, 0.125]


def test_the_best_is_that_of_the_lowest_validation_loss_else_the_last_good_one():
    one = recovery()
    for step, validation_loss in ((10, 0.5), (20, 0.3), (30, 0.4)):
        one.keep(step, lambda step=step: {"at": step}, validation_loss)
        one.confirm(step + 1)
    assert one.best.state == {"at": 20} and one.good.state == {"at": 30}
    one = recovery()
    for step in (10, 20):
        one.keep(step, lambda step=step: {"at": step}, None)
        one.confirm(step + 1)
    assert one.best.state == {"at": 20}


@pytest.mark.parametrize("full", ["", "no file is made", "no file takes a byte"])
def test_in_a_folder_snapshots_are_files_without_a_name_unless_the_disk_is_full(tmp_path, monkeypatch, full):
    def refuse(*arguments, **named):
        if full == "no file takes a byte":
            return open("/dev/full", "r+b")
        raise OSError(errno.ENOSPC, "No space left on device")

    if full == "no file takes a byte" and not Path("/dev/full").exists():
        pytest.skip("this system has no device that is always full")
    if full:
        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    weight, one = torch.ones(1000), Recovery(2.0, 3, 1, tmp_path)
    state = {"weights": {"a": weight}, "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]}, "average": None}
    one.begin(0, state)
    one.keep(10, lambda: state | {"weights": {"a": 2 * weight}}, None)
    one.confirm(11)
    weight.zero_()
    assert list(tmp_path.iterdir()) == []
    for snapshot, value in ((one.back(), 2.0), (one.best, 2.0), (one.back(), 2.0)):
        found = snapshot.state
        assert torch.equal(found["weights"]["a"], torch.full((1000,), value)) and found["optimizer"]["param_groups"] == [{"lr": 1e-3}] and found["average"] is None
    one.begin(0, {"weights": {"a": torch.full((3,), 7.0)}})
    assert torch.equal(one.back().state["weights"]["a"], torch.full((3,), 7.0))


def test_a_copy_has_tensors_of_its_own():
    weight = torch.ones(3)
    state = {"a": [weight, (weight, 2)], "b": {"c": weight}, "d": None}
    found = copied(state)
    weight.zero_()
    assert torch.equal(found["a"][0], torch.ones(3)) and torch.equal(found["a"][1][0], torch.ones(3)) and found["a"][1][1] == 2
    assert torch.equal(found["b"]["c"], torch.ones(3)) and found["d"] is None


def test_what_was_seen_before_a_pause_is_judged_with_what_comes_after():
    one, other = recovery(samples=8), recovery(samples=8)
    for each in (one, other):
        good(each, range(1, 10))
    resumed = Recovery(4.0, 3, 8)
    resumed.begin(9, {"at": 9}, one.memory)
    for step in range(10, 15):
        assert resumed.trouble(step, 0.1 * 2.5 ** (step - 9)) == other.trouble(step, 0.1 * 2.5 ** (step - 9))
    assert resumed.memory["losses"] == other.memory["losses"] and resumed.trouble(15, 9.0)
    assert one.memory["good"] is None  # what is at hand is as good


@pytest.fixture
def script(monkeypatch):
    """Training losses by step, in place of those that a run would have; 0.1 where it says nothing."""
    found, at = {}, [0]
    honest, train_step = Objective.loss, Run._train_step

    def loss(self, predicted, batch, kept=None):
        real = honest(self, predicted, batch, kept)
        return real + (found.get(at[0], 0.1) - real.detach()) if torch.is_grad_enabled() else real

    def step(self):
        at[0] = self.step
        return train_step(self)

    monkeypatch.setattr(Objective, "loss", loss)
    monkeypatch.setattr(Run, "_train_step", step)
    return found


def test_a_run_that_was_killed_while_its_loss_climbed_goes_back_to_before_the_climb(host, script):
    script.update({step: 0.4 for step in range(9, 13)} | {13: 100.0})
    one = HypernetworkTrainer(config=QUICK | {"max_steps": 20, "checkpoint_every": 12})
    for event in one.run(host=host):
        if event.kind == "step" and event.step == 8:
            kept = weights(one.hypernetwork)
        if event.kind == "checkpoint":
            break  # as if killed
    two = HypernetworkTrainer(config=QUICK | {"max_steps": 14})
    for event in two.run(host=host, resume=True):
        if event.kind == "warning":
            break
    assert "times what it was at step 13: back to step 8" in event.message and equal(weights(two.hypernetwork), kept)
    assert RunFolder(host.folders.runs, "quick").load_state()["step"] == 8


@pytest.mark.parametrize("keep_best", [False, True])
def test_a_resumed_run_that_only_explodes_ends_with_the_best_there_was(host, script, keep_best):
    script.update({3: float("nan")})
    changes = QUICK | {"validation_every": 1, "keep_best": keep_best, "learning_rate": "1e-2"}
    one = HypernetworkTrainer(config=changes | {"max_steps": 9, "checkpoint_every": 2})
    kept, validated = {}, {}
    for event in one.run(host=host):
        if event.kind == "validation" and event.step:
            kept[event.step], validated[event.step] = weights(one.hypernetwork), event.validation_loss
        if event.kind == "checkpoint":
            break  # as if killed
    end = list(HypernetworkTrainer(config=changes | {"max_steps": 9}).run(host=host, resume=True))[-1]
    assert end.kind == "stopped" and equal(weights(files.load(end.path)), kept[min(validated, key=validated.get) if keep_best else 2])
