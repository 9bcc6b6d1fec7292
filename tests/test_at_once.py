"""What happens when two things are wanted at once: the table in docs/architecture.md, "At once", row by row."""
import threading

import pytest
from training_runs import equal, weights

from hypernetworks.checkpoint import RunFolder
from hypernetworks.config import TrainingConfig, read
from hypernetworks.embedded import PICTURES
from hypernetworks.errors import DatasetError, HostBusy, NameTaken
from hypernetworks.files import load
from hypernetworks.jobs import Jobs
from hypernetworks.trainees import ResidualTrainee
from hypernetworks.trainer import HypernetworkTrainer

QUICK = dict(
    name="quick", dataset=str(PICTURES / "striped"), max_steps=4, batch_size=1, preview_every=0, validation_every=0, checkpoint_every=2, per_layer=False,
    warmup_steps=0,
)


class Doing:
    """A trainer that, when it comes to a place, does something to the job that it belongs to."""

    def __init__(self, monkeypatch, jobs, place, deed):
        self.deed, self.jobs, self.place, self.done = deed, jobs, place, False
        for name, kind, method in (("checkpoint", RunFolder, "save_state"), ("network", ResidualTrainee, "save")):
            monkeypatch.setattr(kind, method, self.doing(name, getattr(kind, method)))

    def doing(self, name, write):
        def wrapped(owner, what):
            if name == self.place and not self.done and (name == "checkpoint" or what == owner.target):
                self.done = True
                self.deed(self.jobs.current)
            return write(owner, what)

        return wrapped


def started(host, **changes):
    jobs = Jobs(host)
    return jobs, jobs.start(read(TrainingConfig, QUICK | changes))


def ended(host, *deeds):
    """The job after its first step was followed by these clicks."""
    jobs, clicked = Jobs(host), []

    class Trainer(HypernetworkTrainer):
        def run(self, *arguments, **about):
            for event in super().run(*arguments, **about):
                yield event
                if event.kind == "step" and not clicked:
                    clicked.extend(deeds)
                    for deed in deeds:
                        getattr(jobs.current, deed)()

    config = read(TrainingConfig, QUICK)
    job = jobs.start(config, trainer=Trainer(config=config))
    assert job.wait(240)
    return job


@pytest.mark.parametrize("clicks, state", [
    (("stop", "stop"), "stopped"), (("cancel", "cancel"), "cancelled"), (("stop", "cancel"), "cancelled"), (("cancel", "stop"), "cancelled"),
])  # fmt: skip
def test_clicks_on_stop_and_cancel_end_a_run_once_and_cancel_counts_most(host, clicks, state):
    job = ended(host, *clicks)
    assert (job.state, job.error, job.last.step) == (state, None, 1)
    file = host.folders.networks / "quick.safetensors"
    assert file.exists() == (state == "stopped") and (job.path is not None) == file.exists()


@pytest.mark.parametrize("place, deed, state, step", [
    ("checkpoint", "stop", "stopped", 2), ("checkpoint", "cancel", "cancelled", 2), ("network", "stop", "finished", 4), ("network", "cancel", "finished", 4),
])  # fmt: skip
def test_a_click_during_a_save_lets_the_save_come_to_its_end(host, monkeypatch, place, deed, state, step):
    jobs = Jobs(host)
    Doing(monkeypatch, jobs, place, lambda job: getattr(job, deed)())
    job = jobs.start(read(TrainingConfig, QUICK))
    assert job.wait(240)
    assert (job.state, job.error, job.last.step) == (state, None, step)
    run, file = RunFolder(host.folders.runs, "quick"), host.folders.networks / "quick.safetensors"
    assert run.load_state()["step"] == step and load(run.checkpoint_path(step)).step == step
    assert file.exists() == (state != "cancelled")
    if file.exists():
        assert load(file).step == step and equal(weights(load(file)), weights(load(run.checkpoint_path(step))))


def test_many_clicks_on_train_in_several_browsers_start_one_run(host):
    jobs, together, answers = Jobs(host), threading.Barrier(8), []
    config = read(TrainingConfig, QUICK | {"max_steps": 10_000})

    def click():
        together.wait()
        try:
            answers.append(jobs.start(config))
        except HostBusy as error:
            answers.append(str(error))

    threads = [threading.Thread(target=click) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    jobs.current.cancel()
    assert jobs.current.wait(240) and jobs.current.state == "cancelled"
    refused = [answer for answer in answers if isinstance(answer, str)]
    assert len(refused) == 7 and set(refused) == {"A training run is going on already (quick); stop it first or wait for its end."}


def test_during_a_run_the_standalone_model_is_refused_with_a_sentence_and_free_afterwards(host):
    jobs, job = started(host, max_steps=10_000)
    while job.last is None:
        assert not job.wait(0.01)
    with pytest.raises(HostBusy, match="busy"), host.exclusive():
        raise AssertionError("within")
    job.cancel()
    assert job.wait(240)
    with host.exclusive():
        pass


def test_a_second_run_of_a_name_that_is_in_training_is_refused_and_changes_nothing(host):
    first = HypernetworkTrainer(config=QUICK | {"checkpoint_every": 0}).run(host=host)
    while next(first).kind != "step":
        pass
    run = RunFolder(host.folders.runs, "quick")
    half_written = run.path / ".state.pt.01234567.pt"
    half_written.touch()
    for how in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(NameTaken, match="A run named 'quick' is going on already, here or in another program"):
            next(HypernetworkTrainer(config=QUICK).run(host=host, **how))
    assert len(run.rows()) == 1 and half_written.exists()
    assert [event.step for event in first if event.kind == "step"] == [2, 3, 4] and len(run.rows()) == 4
    assert list(HypernetworkTrainer(config=QUICK).run(host=host, overwrite=True))[-1].kind == "finished"


def test_a_run_that_comes_to_nothing_leaves_no_folder(host, tmp_path):
    with pytest.raises(DatasetError):
        list(HypernetworkTrainer(config=QUICK | {"dataset": str(tmp_path / "none")}).run(host=host))
    assert not (host.folders.runs / "quick").exists()
