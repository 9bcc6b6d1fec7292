"""A training process is killed at 50 instants: every file that a user would use is whole each time, and the run comes to the same end."""
import json
import os
import random
import shutil
import time
from statistics import median

import pytest
import torch
from killed_runs import Nursery
from PIL import Image
from tiny_models import make_pipeline
from training_runs import equal, weights

from hypernetworks.catalog import Catalog
from hypernetworks.checkpoint import RunFolder
from hypernetworks.embedded import PICTURES
from hypernetworks.files import load
from hypernetworks.host import Folders

pytestmark = [pytest.mark.faults, pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")]

KILLS, SEED = 50, 7
STEPS = 3 * KILLS  # no run gets so much further before it is killed that it comes to the end
OPTIONS = dict(
    name="killed", max_steps=STEPS, batch_size=1, per_layer=False, ema_decay=0.9, also_pt=True, dropout_structure=(0, 0.3, 0), preview_every=10,
    preview_steps=1, preview_prompts="a star", validation_every=25, validation_share=0.25, checkpoint_every=1, warmup_steps=0,
)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    make_pipeline("sd1").save_pretrained(folder / "model")
    (folder / "pictures").mkdir()
    for file in sorted((PICTURES / "striped").iterdir())[:8]:
        shutil.copy(file, folder / "pictures")
    return folder


@pytest.fixture(scope="module")
def nursery(work):
    one = Nursery(work / "model")
    yield one
    one.end()


@pytest.fixture(scope="module")
def options(work):
    return OPTIONS | {"dataset": str(work / "pictures")}


class Home:
    """The files of one run."""

    def __init__(self, folder):
        self.folder, self.folders = folder, Folders.below(folder)
        self.run = RunFolder(self.folders.runs, OPTIONS["name"])

    def network(self, step):
        return load(self.run.checkpoint_path(step))

    def files(self):
        """All that are there, those of other programs' making among them."""
        return [path for folder in (self.folders.networks, self.run.path) for path in sorted(folder.rglob("*")) if path.is_file()]

    @property
    def step(self):
        state = self.run.load_state()
        return 0 if state is None else state["step"]


@pytest.fixture(scope="module")
def undisturbed(nursery, work, options):
    """The run that nobody kills, and how many seconds its start and its saves take."""
    home, began = Home(work / "undisturbed"), time.monotonic()
    child = nursery.begin(home=str(home.folder), options=options)
    said = nursery.until("finished")
    nursery.kill(child)
    times = {tuple(words): when for when, words in said}
    gaps = [times["checkpoint", str(step)] - times["step", str(step)] for step in range(1, STEPS) if step % 10 and step % 25]
    return home, times["step", "1"] - began, median(gaps)


def lost(home, undisturbed, announced):
    """What a user would miss. Every file is opened as the program opens it; up to the step `announced` all was said to be saved."""
    networks = [*home.folders.networks.glob("*"), *(home.run.path / "checkpoints").glob("*")]
    for path in [path for path in networks if not path.name.startswith(".")]:
        network = load(path)
        if not path.stem.endswith("-raw"):
            assert equal(weights(network), weights(undisturbed.network(network.step))), path.name
    assert set(Catalog(home.folders.networks).names()) <= {"killed", "killed-raw"}
    for picture in home.run.previews():
        with Image.open(picture) as image:
            image.load()
    assert announced <= home.step <= announced + 1
    assert home.step == 0 or {f"step-{step:06d}.safetensors" for step in range(1, home.step + 1)} <= {path.name for path in networks}
    table = home.run.path / "loss.csv"
    if table.exists():
        assert table.read_bytes().endswith(b"\n")
        steps = [row for row in home.run.rows() if row.loss is not None]
        assert home.step <= len(steps) and steps == [row for row in undisturbed.run.rows() if row.loss is not None][: len(steps)]
    assert home.step == 0 or json.loads((home.run.path / "config.json").read_text())["options"]["name"] == "killed"


def test_killed_at_fifty_instants_nothing_is_lost_and_the_end_is_the_same(nursery, work, options, undisturbed, fault_counts):
    reference, start, save = undisturbed
    seconds = {"start": start, "save": save, "save and stop": 3 * save, "anywhere": 2 * save}
    home, chance, problems, in_saves = Home(work / "killed"), random.Random(SEED), [], 0
    for number in range(KILLS):
        before = home.step
        at, how = before + chance.choice((1, 1, 2)), chance.choice(("start", "save", "save", "save and stop", "anywhere"))
        child = nursery.begin(home=str(home.folder), options=options, resume=number > 0, **({"stop_at": at} if how == "save and stop" else {}))
        said = nursery.until("step", str(at)) if how != "start" else []
        time.sleep(seconds[how] * chance.random())
        said += nursery.kill(child)
        last = said[-1][1] if said else []
        in_saves += last == ["step", str(at)]
        announced = max([int(words[1]) for _, words in said if words[0] in ("checkpoint", "stopped")], default=before)
        fault_counts.killed += 1
        try:
            lost(home, reference, announced)
        except Exception as error:
            fault_counts.lost += 1
            problems.append((number, how, at, last, repr(error)))
    assert not problems
    assert in_saves >= KILLS // 3, "hardly any of them was killed while it saved"
    child = nursery.begin(home=str(home.folder), options=options, resume=True)
    nursery.until("finished")
    nursery.kill(child)
    lost(home, reference, STEPS)
    same_end(home, reference)


def same_end(home, reference):
    """Every file is what it is without any kill, and there is no other."""
    assert [path.relative_to(home.folder) for path in home.files()] == [path.relative_to(reference.folder) for path in reference.files()]
    for suffix in (".safetensors", ".pt", "-raw.safetensors"):
        found, wanted = (load(one.folders.networks / f"killed{suffix}") for one in (home, reference))
        assert found.step == wanted.step == STEPS and equal(weights(found), weights(wanted))
    assert all(same(home.run.load_state()[name], value) for name, value in reference.run.load_state().items() if name != "seconds")
    for name in ("loss.csv", *(f"previews/{picture.name}" for picture in reference.run.previews())):
        assert (home.run.path / name).read_bytes() == (reference.run.path / name).read_bytes()


def same(a, b):
    """Whether two states are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
