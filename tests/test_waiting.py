"""The queue of runs: whose turn it is, what a restart finds, and what two pages and a client see of it."""
import json
import threading
from types import SimpleNamespace

import pytest
from one_job_host import OneJobHost

from hypernetworks import sweep
from hypernetworks.config import TrainingConfig, plain, read
from hypernetworks.errors import DiskFull, HostBusy, NameRefused, NameTaken, NotThere, TrainingFailed
from hypernetworks.jobs import Jobs
from hypernetworks.locks import held
from hypernetworks.waiting import Queue


class Trainers:
    """Makes trainers that end when they are told to by name, and notes the order of their turns."""

    def __init__(self):
        self.turns, self.failing, self.gates, self.lock = [], set(), {}, threading.Lock()

    def gate(self, name):
        with self.lock:
            return self.gates.setdefault(name, threading.Event())

    def __call__(self, config):
        def run(host, resume, overwrite):
            self.turns.append((config.name, resume, overwrite))
            assert self.gate(config.name).wait(10)
            if config.name in self.failing:
                raise TrainingFailed("The disk is full.")
            yield SimpleNamespace(kind="finished", step=1, steps=1, message=f"Saved {config.name}.", path=None, pictures=(), loss=None)

        return SimpleNamespace(run=run, stop=self.gate(config.name).set, cancel=self.gate(config.name).set)

    def names(self):
        return [name for name, _, _ in self.turns]


@pytest.fixture
def host(tmp_path):
    return OneJobHost(tmp_path)


@pytest.fixture
def trainers():
    made = Trainers()
    yield made
    for name in "abcdefgh":
        made.gate(name).set()


@pytest.fixture
def jobs(host, trainers):
    return Jobs(host, trainers)


def config(name, **values):
    return read(TrainingConfig, {"name": name, "dataset": "pictures", **values})


def names(queue):
    return [one.config.name for one in queue.waiting]


def finish(jobs, trainers, name):
    """Lets the run of that name come to its end, whose turn it is."""
    job = jobs.current
    assert job.config.name == name and job.running
    trainers.gate(name).set()
    assert job.wait(10)


def test_runs_have_their_turns_one_after_the_other_also_after_one_that_fails(jobs, trainers):
    trainers.failing.add("b")
    for name in "abc":
        jobs.add(config(name), overwrite=name == "c")
    assert jobs.current.config.name == "a" and names(jobs.queue) == ["b", "c"] and jobs.queue.running.config.name == "a"
    finish(jobs, trainers, "a")
    finish(jobs, trainers, "b")
    finish(jobs, trainers, "c")
    assert trainers.turns == [("a", False, False), ("b", False, False), ("c", False, True)]
    told = [(one.name, one.state, one.sentence) for one in jobs.queue.ended]
    assert told == [("c", "finished", "Saved c."), ("b", "failed", "The disk is full."), ("a", "finished", "Saved a.")]
    assert jobs.queue.running is None and names(jobs.queue) == []


def test_a_run_that_was_started_by_hand_goes_before_the_queue_and_is_no_part_of_it(jobs, trainers):
    jobs.start(config("a"))
    jobs.add(config("b"))
    with pytest.raises(HostBusy):
        jobs.start(config("c"))
    finish(jobs, trainers, "a")
    finish(jobs, trainers, "b")
    assert [one.name for one in jobs.queue.ended] == ["b"]


def test_the_order_is_changed_and_runs_are_taken_out(jobs, trainers):
    numbers = {name: jobs.add(config(name)).number for name in "abcde"}
    queue = jobs.queue
    queue.shift(numbers["d"], -1)
    assert names(queue) == ["b", "d", "c", "e"]
    queue.shift(numbers["b"], -1)  # is the first already
    queue.move(numbers["e"], 1)
    assert names(queue) == ["b", "e", "d", "c"]
    queue.move(numbers["b"], 99)
    assert names(queue) == ["e", "d", "c", "b"]
    assert queue.remove(numbers["d"]).config == config("d")
    for act in (lambda: queue.remove(numbers["a"]), lambda: queue.move(numbers["d"], 0), lambda: queue.shift(-1, 1)):
        with pytest.raises(NotThere):
            act()
    for name in "aecb":
        finish(jobs, trainers, name)
    assert trainers.names() == ["a", "e", "c", "b"]
    assert queue.remove(numbers["e"]) is None and [one.name for one in queue.ended] == ["b", "c", "a"]


def test_a_name_can_wait_once_unless_it_goes_on_or_replaces(jobs):
    jobs.add(config("a"))
    jobs.add(config("b"))
    for name in ("a", "B"):
        with pytest.raises(NameTaken, match="in the queue already"):
            jobs.add(config(name))
    jobs.add(config("b", max_steps=2000), resume=True)
    with pytest.raises(NameRefused):
        jobs.add(config("a/b"))
    assert names(jobs.queue) == ["b", "b"]


def test_a_held_queue_begins_nothing_until_it_is_let_go(jobs, trainers):
    jobs.add(config("a"))
    jobs.add(config("b"))
    jobs.queue.hold()
    finish(jobs, trainers, "a")
    assert names(jobs.queue) == ["b"] and not jobs.current.running
    jobs.queue.hold(False)
    jobs.go_on()
    finish(jobs, trainers, "b")


def test_a_run_of_the_queue_waits_for_a_model_in_use_and_can_be_stopped_meanwhile(host, jobs, trainers, monkeypatch):
    monkeypatch.setattr("hypernetworks.jobs.PATIENCE", 0.01)
    with host.exclusive():
        jobs.add(config("a"))
        assert not jobs.current.wait(0.1) and trainers.turns == []
    finish(jobs, trainers, "a")
    with host.exclusive():
        jobs.add(config("b"))
        jobs.current.cancel()
        assert jobs.current.wait(10)
    (last, _) = jobs.queue.ended
    assert (last.state, last.sentence) == ("cancelled", "Cancelled before the first step.") and jobs.current.error is None and trainers.names() == ["a"]


def test_a_restart_finds_the_queue_with_the_run_that_was_cut_off_and_begins_nothing(host, jobs, trainers):
    for name in "abc":
        jobs.add(config(name, max_steps=7, blocks=["middle"]), overwrite=True)
    finish(jobs, trainers, "a")
    run = host.folders.runs / "b"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"options": plain(config("b", max_steps=7, blocks=["middle"]))}))
    (run / "state.pt").touch()
    later = Jobs(host, trainers)
    assert [(one.config, one.resume, one.overwrite) for one in later.queue.waiting] == [
        (config("b", max_steps=7, blocks=["middle"]), True, False), (config("c", max_steps=7, blocks=["middle"]), False, True),
    ]  # fmt: skip
    assert later.queue.held and later.current is None and [one.name for one in later.queue.ended] == ["a"]
    assert later.add(config("d")).number == 4 and later.current is None
    later.queue.hold(False)
    later.go_on()
    assert later.current.config.name == "b"


def test_a_state_of_another_run_of_that_name_is_not_gone_on_from(host, jobs):
    jobs.add(config("a"), overwrite=True)
    run = host.folders.runs / "a"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"options": plain(config("a", max_steps=3))}))
    (run / "state.pt").touch()
    (one,) = Queue(lambda: host.folders).waiting
    assert (one.resume, one.overwrite) == (False, True)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"count": 1}', '{"count": "x", "ended": [], "waiting": [], "running": null}', '{"ended": [{"a": 1}]}'])
def test_a_damaged_queue_is_an_empty_one(host, text):
    host.folders.data.mkdir(parents=True)
    (host.folders.data / "queue.json").write_text(text)
    queue = Queue(lambda: host.folders)
    assert queue.waiting == [] and not queue.held
    assert queue.add(config("a")).number >= 1


def test_a_damaged_run_is_left_out_and_the_others_stay(host):
    before = Queue(lambda: host.folders)
    before.add(config("a"))
    before.add(config("b"))
    file = host.folders.data / "queue.json"
    file.write_text(file.read_text().replace('"name": "a"', '"nom": "a"'))
    assert names(Queue(lambda: host.folders)) == ["b"]


def test_a_sweep_is_queued_as_a_whole_and_its_table_follows(host, jobs, trainers):
    made = sweep.make({"name": "a", "dataset": "pictures"}, {"max_steps": [1, 2]})
    first, second = (run.name for run in made.runs)
    jobs.add(config(second))
    with pytest.raises(NameTaken):
        jobs.add_sweep(made, made.runs)
    assert names(jobs.queue) == [] and sweep.names(host.folders) == []
    finish(jobs, trainers, second)
    jobs.add_sweep(made, made.runs)
    assert sweep.tables(host.folders, "a") == []
    finish(jobs, trainers, first)
    assert jobs.current.config.name == second and len(sweep.tables(host.folders, "a")) == 2
    trainers.gate(second).set()
    assert jobs.current.wait(10)
    assert [one.sweep for one in Queue(lambda: host.folders).waiting] == []


def test_a_sweep_that_cannot_be_noted_is_not_queued_and_what_has_begun_meanwhile_goes_on(jobs, monkeypatch):
    made = sweep.make({"name": "a", "dataset": "pictures"}, {"max_steps": [1, 2]})

    def full(*arguments):
        jobs.go_on()  # as when a run ends now
        raise DiskFull("The disk is full.")

    monkeypatch.setattr(sweep, "keep", full)
    with pytest.raises(DiskFull):
        jobs.add_sweep(made, made.runs)
    assert jobs.queue.waiting == [] and jobs.current.config == made.runs[0]
    jobs.current.cancel()


def test_threads_that_add_at_once_lose_nothing(host):
    queue = Queue(lambda: host.folders)
    threads = [threading.Thread(target=lambda part=part: [queue.add(config(f"{part} {number}")) for number in range(5)]) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.number for one in queue.waiting}) == 20
    assert sorted(names(Queue(lambda: host.folders))) == sorted(names(queue))


def test_two_programs_see_the_same_queue_and_lose_nothing_of_each_other(host):
    here, there = Queue(lambda: host.folders), Queue(lambda: host.folders)
    assert here.waiting == there.waiting == []
    changes = here.changes
    first, second = here.add(config("a")), there.add(config("b"))
    assert (first.number, second.number) == (1, 2) and names(here) == names(there) == ["a", "b"] and here.changes > changes + 1
    with pytest.raises(NameTaken):
        here.add(config("b"))
    there.move(second.number, 0)
    here.remove(first.number)
    assert names(there) == ["b"]
    assert there.take() == second and names(here) == []
    with pytest.raises(NameTaken):
        here.add(config("b"))
    there.finish(second, "finished", "Saved b.")
    assert [one.name for one in here.ended] == ["b"]


def test_programs_that_add_at_once_lose_nothing(host):
    queues = [Queue(lambda: host.folders) for _ in range(4)]
    threads = [threading.Thread(target=lambda queue=queue, part=part: [queue.add(config(f"{part} {number}")) for number in range(5)]) for part, queue in enumerate(queues)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.number for one in Queue(lambda: host.folders).waiting}) == 20
    assert all(len(queue.waiting) == 20 for queue in queues)


def test_a_program_begins_its_own_runs_and_those_that_it_is_told_to_go_on_with(host):
    here, there = Queue(lambda: host.folders), Queue(lambda: host.folders)
    here.add(config("a"))
    assert there.take() is None
    there.add(config("b"))
    assert here.take().config.name == "a" and here.take() is None
    here.hold(False)
    assert here.take().config.name == "b" and there.take() is None


def test_a_run_in_training_elsewhere_is_not_one_that_was_cut_off(host, jobs, trainers):
    jobs.add(config("a"))
    with held(host.folders.runs / "a" / "run.lock"):  # as its trainer does
        other = Queue(lambda: host.folders)
        assert names(other) == [] and not other.held
    other.add(config("b"))
    finish(jobs, trainers, "a")
    assert names(jobs.queue) == names(other) == ["b"] and [one.name for one in other.ended] == ["a"]


def test_a_run_that_was_cut_off_is_found_by_one_program_only(host):
    before = Queue(lambda: host.folders)
    before.add(config("a"))
    before.take()  # as if killed
    first, second = Queue(lambda: host.folders), Queue(lambda: host.folders)
    assert names(first) == names(second) == ["a"]
    first.hold(False)
    assert first.take().config.name == "a" and names(second) == []


def test_what_could_not_be_kept_is_not_forgotten(host, monkeypatch):
    def full(*arguments):
        raise TrainingFailed("The disk is full.")

    queue = Queue(lambda: host.folders)
    queue.add(config("a"))
    with monkeypatch.context() as patched:
        patched.setattr("hypernetworks.waiting.write_atomically", full)
        queue.add(config("b"))
    queue.add(config("c"))
    assert names(queue) == names(Queue(lambda: host.folders)) == ["a", "b", "c"]


def test_a_queue_with_one_run_alone_in_training_is_read(host):
    Queue(lambda: host.folders).add(config("a"))
    file = host.folders.data / "queue.json"
    kept = json.loads(file.read_text())
    file.write_text(json.dumps(kept | {"running": kept["waiting"][0], "waiting": []}))
    assert names(Queue(lambda: host.folders)) == ["a"]
