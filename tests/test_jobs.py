"""Runs in the background, with a stand-in for the trainer: what matters here is who sees what, when."""
import logging
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from one_job_host import OneJobHost

from hypernetworks.config import TrainingConfig
from hypernetworks.errors import HostBusy, TrainingFailed
from hypernetworks.jobs import Curve, Jobs


def event(kind, step=0, steps=0, message="", loss=None, validation_loss=None, pictures=(), path=None, rate=None, seconds_left=None):
    return SimpleNamespace(**locals())


class Trainer:
    """Yields what it was given; a threading.Event among the events is waited for, an exception is raised."""

    def __init__(self, *script):
        self.script, self.asked = script, []

    def __call__(self, config):
        return self

    def run(self, host, resume, overwrite):
        self.asked.append((resume, overwrite))
        for part in self.script:
            if isinstance(part, Exception):
                raise part
            if isinstance(part, threading.Event):
                assert part.wait(10)
            else:
                yield part

    def stop(self):
        self.asked.append("stop")

    def cancel(self):
        self.asked.append("cancel")


def run(*script, host=None):
    jobs = Jobs(host or OneJobHost(), Trainer(*script))
    job = jobs.start(TrainingConfig(name="striped"))
    return jobs, job


def test_the_host_hears_how_far_a_run_is_and_its_interrupt_stops_and_saves():
    host = OneJobHost()
    host.interrupted_at = 2
    jobs, job = run(event("step", 1, 3, loss=0.5), event("step", 2, 3, loss=0.4), event("stopped", 2, 3), host=host)
    assert job.wait(10)
    assert host.reported == [("Training striped", 1, 3), ("Training striped", 2, 3), ("Training striped", 2, 3)]
    assert job.ending == "stop"


def test_a_run_goes_on_in_the_background_and_is_found_again():
    gate = threading.Event()
    jobs, job = run(event("step", 1, 2, loss=0.5), gate, event("finished", 2, 2, path=Path("striped.safetensors")))
    assert jobs.current is job and job.running and job.path is None
    gate.set()
    assert job.wait(10) and not job.running
    assert jobs.current is job
    assert job.path == Path("striped.safetensors") and job.error is None


def test_the_host_is_held_for_the_whole_run_and_free_afterwards():
    host, gate = OneJobHost(), threading.Event()
    _, job = run(event("step", 1, 2, loss=0.5), gate, host=host)
    while job.last is None:
        assert not job.wait(0.01)
    with pytest.raises(HostBusy), host.exclusive():
        pass
    gate.set()
    job.wait(10)
    with host.exclusive():
        pass


def test_a_second_run_waits_for_nothing_it_is_refused():
    gate = threading.Event()
    jobs, job = run(gate)
    with pytest.raises(HostBusy, match="striped"):
        jobs.start(TrainingConfig(name="other"))
    gate.set()
    job.wait(10)
    assert jobs.start(TrainingConfig(name="other")).number == job.number + 1


def test_a_busy_host_is_told_in_the_hosts_words():
    host = OneJobHost()
    with host.exclusive():
        _, job = run(event("step", 1, 2), host=host)
        job.wait(10)
    assert job.error == "The model is busy." and job.last is None


def test_a_users_error_is_one_sentence():
    _, job = run(event("step", 1, 9, loss=1.0), TrainingFailed("The loss is not a number at step 2."))
    job.wait(10)
    assert job.error == "The loss is not a number at step 2." and job.path is None


def test_a_bug_is_named_to_the_user_and_logged_with_its_trace(caplog):
    with caplog.at_level(logging.ERROR):
        _, job = run(ZeroDivisionError("division by zero"))
        job.wait(10)
    assert job.error == (
        "Training stopped because of an error inside the program (ZeroDivisionError: division by zero); the log has the details."
    )
    assert "Traceback" in caplog.text and "striped" in caplog.text


def test_stop_and_cancel_reach_the_trainer():
    gate = threading.Event()
    jobs, job = run(gate)
    job.stop()
    assert job.ending == "stop"
    job.cancel()
    assert job.ending == "cancel"
    gate.set()
    job.wait(10)
    assert jobs._make_trainer.asked == [(False, False), "stop", "cancel"]


def test_resume_and_overwrite_reach_the_trainer():
    trainer = Trainer()
    jobs = Jobs(OneJobHost(), trainer)
    jobs.start(TrainingConfig(name="a"), resume=True).wait(10)
    jobs.start(TrainingConfig(name="a"), overwrite=True).wait(10)
    assert trainer.asked == [(True, False), (False, True)]


def test_previews_keep_their_step_and_prompt():
    pictures = (Path("1.png"), Path("2.png"))
    _, job = run(event("preview", 5, 9, message="a star\na heart", pictures=pictures))
    job.wait(10)
    assert [(preview.step, preview.path, preview.prompt) for preview in job.previews] == [
        (5, pictures[0], "a star"),
        (5, pictures[1], "a heart"),
    ]


def test_a_warning_does_not_move_the_bar():
    _, job = run(event("step", 3, 9, loss=0.1), event("warning", message="Mind the gap."))
    job.wait(10)
    assert (job.position.step, job.position.steps) == (3, 9)
    assert job.warnings == ["Mind the gap."]


def test_a_long_run_takes_no_more_room_than_a_short_one():
    steps = [event("step", step, 20_000, loss=1.0) for step in range(1, 20_001)]
    _, job = run(*steps, event("finished", 20_000, 20_000))
    job.wait(60)
    assert len(job.events) == 1
    assert len(job.losses.points()) <= 1025


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=300), st.sampled_from([2, 4, 16]))
def test_a_curve_stays_short_and_keeps_the_mean(values, limit):
    curve = Curve(limit)
    for step, value in enumerate(values, 1):
        curve.add(step, value)
    points = curve.points()
    assert len(points) <= limit + 1
    assert [step for step, _ in points] == sorted(step for step, _ in points)
    weights = [curve.stride] * (len(values) // curve.stride)
    weights += [len(values) % curve.stride] if len(values) % curve.stride else []
    assert len(points) == len(weights)
    mean = sum(weight * value for weight, (_, value) in zip(weights, points, strict=True)) / len(values)
    assert mean == pytest.approx(sum(values) / len(values), abs=1e-9)


def test_a_short_curve_is_exact():
    curve = Curve()
    for step in range(10):
        curve.add(step, step**2)
    assert curve.points() == [(step, step**2) for step in range(10)]


def test_a_curve_forgets_what_a_run_went_back_behind():
    curve = Curve()
    for step, value in [(1, 0.1), (2, 0.2), (3, 9.0), (4, 99.0), (3, 0.3), (4, 0.4)]:
        curve.add(step, value)
    assert curve.points() == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    long = Curve(limit=8)
    for step in [*range(1, 41), *range(30, 41)]:
        long.add(step, float(step))
    steps = [step for step, _ in long.points()]
    assert steps == sorted(steps) and all(value == step for step, value in long.points()) and steps[-1] > 35
