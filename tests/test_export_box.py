"""The library's box for a generator without a browser: exporting and refining on the embedded model."""
import re
import shutil
import threading
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio", reason="the page needs gradio")

import gradio as gr
from models import generator

from hypernetworks.catalog import Catalog
from hypernetworks.config import TrainingConfig
from hypernetworks.embedded import PICTURES
from hypernetworks.exporting import export
from hypernetworks.generator_files import save_generator
from hypernetworks.host import Folders
from hypernetworks.hosts.diffusers import DiffusersHost
from hypernetworks.jobs import Jobs
from hypernetworks.library import Library
from hypernetworks.prompt import ActiveNetwork, ConditionSource
from hypernetworks.references import References
from hypernetworks.ui.condition_inputs import REFERENCE, TASK, TEXT
from hypernetworks.ui.library_tab import LibraryTab
from hypernetworks.ui.train_tab import TrainTab

NOTHING = [TEXT, "", "", ""]


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    host = DiffusersHost(None, Folders.below(tmp_path_factory.mktemp("home")), device="cpu")
    save_generator(generator(host.unet), host.folders.networks / "maker.safetensors")
    shutil.copytree(PICTURES / "striped", host.folders.pictures / "striped")
    host.client_paths = False
    with gr.Blocks(analytics_enabled=False):
        return LibraryTab(host, Library(Catalog(host.folders.networks), host.folders), Jobs(host)).exporting


def chosen(first, second=NOTHING, blend=0.0):
    return [*first, *second, blend]


def words(html):
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", html)).replace("&lt;", "<").replace("&gt;", ">").strip()


def exported(box, **active):
    return export(box.host, box.library.catalog, ActiveNetwork("maker", **active), "other")


def test_a_picture_a_blend_and_a_strength_are_exported_and_the_file_is_shown(box):
    hash = References(box.host.folders.references).keep(PICTURES / "striped" / "01.png")
    html = box.export("maker", "fox", 0.8, *chosen([REFERENCE, "", hash, ""], [TASK, "", "", "fresco"], 0.3))
    same = exported(box, strength=0.8, condition=ConditionSource("reference", hash), second=ConditionSource("task", "fresco"), blend=0.3)
    path = box.host.folders.loras / f"fox-{same.hash}.safetensors"
    assert path.read_bytes()[-1000:] == same.path.read_bytes()[-1000:]
    assert str(path) in words(html) and f"<lora:{path.stem}:1>" in words(html) and "fox-" in html


def test_a_text_alone_goes_by_the_generators_name(box):
    html = box.export("maker", "", 1, *chosen([TEXT, "a red star", "", ""]))
    assert f"maker-{exported(box, condition=ConditionSource('text', 'a red star')).hash} is ready" in words(html)


@pytest.mark.parametrize("values, sentence", [
    (("maker", "", 1, *chosen([REFERENCE, "", "", ""])), "Drop in a reference picture first"),
    (("maker", "", 1, *chosen([TASK, "", "", "fresko"])), "it knows etching, fresco"),
    (("maker", "a/b", 1, *chosen(NOTHING)), "contains /"),
    (("gone", "", 1, *chosen(NOTHING)), "There is no hypernetwork"),
    (("maker", "", None, *chosen(NOTHING)), "Strength"),
])  # fmt: skip
def test_what_cannot_be_exported_is_one_sentence(box, values, sentence):
    html = box.export(*values)
    assert 'role="alert"' in html and sentence in words(html)


@pytest.mark.parametrize("dataset, steps, sentence", [
    ("/etc", 40, "send the pictures first"), ("", 40, "send the pictures first"), ("striped", 41, "from 1 to 40"), ("striped", 0, "from 1 to 40"),
])  # fmt: skip
def test_what_cannot_be_refined_is_one_sentence(box, dataset, steps, sentence):
    (html,) = box.refine(dataset, steps, "maker", "", 1, *chosen(NOTHING))
    assert 'role="alert"' in html and sentence in words(html) and box.jobs.current is None


def test_during_a_run_exporting_is_refused_at_once(box):
    gate = threading.Event()
    trainer = SimpleNamespace(run=lambda **how: iter([gate.wait(10)][:0]), stop=gate.set, cancel=gate.set)
    job = box.jobs.start(TrainingConfig(name="ink"), trainer=trainer)
    html = box.export("maker", "", 1, *chosen([TASK, "", "", "etching"]))
    gate.set()
    assert job.wait(10) and "The model is busy with a training run (ink); stop it first or wait for its end." in words(html)


def test_refining_tells_how_far_it_is_and_then_where_the_file_is(box):
    *while_running, last = box.refine("striped", 4, "maker", "fox", 0.8, *chosen([TASK, "", "", "etching"]))
    (path,) = box.host.folders.loras.glob("fox refined-*")
    assert box.jobs.current.path == path and f"{path.stem} is ready" in words(last)
    assert all("Refining:" in words(html) for html in while_running)


def test_what_goes_wrong_in_the_run_is_told(box):
    html = list(box.refine("striped", 4, "maker", "", 1, *chosen([TASK, "", "", "fresko"])))[-1]
    assert 'role="alert"' in html and "it knows etching, fresco" in words(html)


def test_the_training_tab_shows_a_refined_file_as_what_it_is(box):
    list(box.refine("striped", 2, "maker", "bear", 1, *chosen([TASK, "", "", "etching"])))
    with gr.Blocks(analytics_enabled=False):
        shown = TrainTab(box.host, box.jobs)._result(box.jobs.current, running=False)
    assert "<lora:bear refined-" in words(shown[0]) and not shown[1]["visible"]
