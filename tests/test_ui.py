"""The page without a browser: what its parts show and what its buttons do, with a stand-in for the host."""
import json
import re
import socket
import threading
import xml.etree.ElementTree as ElementTree
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import diffusers_unet
from PIL import Image

pytest.importorskip("gradio", reason="the page needs gradio")

from hypernetworks.catalog import Catalog
from hypernetworks.checkpoint import RunFolder
from hypernetworks.config import TrainingConfig, options, read
from hypernetworks.dataset import read_folder
from hypernetworks.errors import ConfigError, HostBusy, HypernetworkError
from hypernetworks.files import load, save
from hypernetworks.generator import Hypernetwork
from hypernetworks.generator_files import save_generator
from hypernetworks.host import Folders, ModelFacts
from hypernetworks.jobs import Jobs
from hypernetworks.presets import PRESETS, preset
from hypernetworks.prompt import ActiveNetwork, ConditionSource, extract
from hypernetworks.repeats import read_pictures
from hypernetworks.residual import ResidualHypernetwork, ResidualStructure
from hypernetworks.ui import app, dataset_check, markup, progress, result
from hypernetworks.ui.condition_inputs import ConditionInputs
from hypernetworks.waiting import Queue

ROOT = Path(__file__).parent.parent


class Host:
    """A model that draws grey pictures, is busy when told so, and describes pictures when given words for it."""

    model = ModelFacts("small", "0123456789", "sd1", "epsilon", 128)
    client_paths = True

    def __init__(self, folder):
        self.begin(folder)

    def begin(self, folder):
        """As new, with its files in `folder`."""
        self.folders = Folders.below(folder)
        self.folders.networks.mkdir(parents=True)
        self.busy, self.requests = False, []
        self.captioner, self.reports, self.interrupted = None, [], False

    @contextmanager
    def exclusive(self):
        if self.busy:
            raise HostBusy("The model is busy with another job.")
        yield

    def report(self, text, step, steps):
        self.reports.append((step, steps))
        return self.interrupted

    def generate(self, request, on_step=None):
        self.requests.append(request)
        return [Image.new("RGB", (request.width, request.height), "grey")]


class Trainer:
    """Yields `events`, then waits for `gate`."""

    def __init__(self):
        self.begin()

    def begin(self):
        self.events, self.gate, self.runs, self.config = (), threading.Event(), [], None

    def __call__(self, config):
        self.config = config
        return self

    def run(self, host, resume, overwrite):
        self.runs.append({"resume": resume, "overwrite": overwrite})
        yield from self.events
        assert self.gate.wait(10)

    def stop(self):
        self.gate.set()

    cancel = stop


class Session:
    """Notes what is active while a picture is drawn."""

    def __init__(self, catalog):
        self.catalog, self.active = catalog, []

    @contextmanager
    def applied(self, host, active, prompts):
        self.active.append(list(active))
        self.prompts = list(prompts)
        yield SimpleNamespace(at_step=lambda step, steps: None, notes=["A width is left unused."] if active else [])


def event(kind, step=0, steps=0, message="", loss=None, validation_loss=None, pictures=(), path=None, rate=None, seconds_left=None):
    return SimpleNamespace(**locals())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The standalone page as `app.build` makes it, and its tabs; built once, since gradio takes its time."""
    host, trainer, made = Host(tmp_path_factory.mktemp("built")), Trainer(), {}
    with pytest.MonkeyPatch.context() as patch:
        for kind in (app.TrainTab, app.GenerateTab):

            def keep(*arguments, kind=kind):
                return made.setdefault(kind.__name__, kind(*arguments))

            patch.setattr(app, kind.__name__, keep)
        jobs = Jobs(host, trainer)
        demo = app.build(host, jobs)
    return SimpleNamespace(demo=demo, jobs=jobs, train=made["TrainTab"], generate=made["GenerateTab"], host=host, trainer=trainer)


@pytest.fixture
def page(built, tmp_path):
    """The page on a machine where nothing has happened yet."""
    built.host.begin(tmp_path)
    built.trainer.begin()
    built.jobs.current, built.jobs.queue = None, Queue(lambda: built.host.folders)
    catalog = Catalog(built.host.folders.networks)
    built.generate.rows.catalog, built.generate.session = catalog, Session(catalog)
    built.generate.rows.questions.catalog = catalog
    yield built
    built.jobs.queue.hold()
    built.trainer.gate.set()
    if built.jobs.current:
        built.jobs.current.wait(10)


@pytest.fixture
def host(page):
    return page.host


@pytest.fixture
def trainer(page):
    return page.trainer


@pytest.fixture
def tab(page):
    return page.generate


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "birds"
    folder.mkdir()
    for name, size in (("a robin", (64, 64)), ("two crows", (200, 100)), ("IMG_0001", (100, 200))):
        Image.new("RGB", size, "red").save(folder / f"{name}.png")
    return folder


def network(per_layer=False):
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    return ResidualHypernetwork({layer if per_layer else 8: 8}, ResidualStructure(), initialization="Normal", seed=1)


def raw(train, **values):
    """What the page sends: every input's first value, but for `values`."""
    return [values.get(name, component.value) for name, component in train.form.inputs.items()]


def text(html):
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", html)).strip()


# --- the whole page


def test_every_option_has_one_input_and_the_untouched_page_means_the_preset_that_it_shows(page):
    form = page.train.form
    assert set(form.inputs) == set(options(TrainingConfig))
    assert read(TrainingConfig, form.values(raw(page.train))) == read(TrainingConfig, PRESETS[page.train.presets.preset.value].values)


def test_element_ids_are_our_own_and_unique(page):
    ids = [block.elem_id for block in page.demo.blocks.values() if block.elem_id]
    assert len(ids) == len(set(ids)) > 80
    assert all(elem_id.startswith("hypernetworks_") for elem_id in ids)


def test_style_and_script_name_no_address():
    for file in (app.STYLE, app.SCRIPT):
        assert "://" not in file.read_text(encoding="utf-8")


def test_web_uis_find_style_and_script_at_the_top():
    style = re.search(r'@import url\("(.+?)"\)', (ROOT / "style.css").read_text())[1]
    script = re.search(r"`(\.\./.+?\.js)", (ROOT / "javascript" / "hypernetworks.js").read_text())[1]
    assert (ROOT / style).samefile(app.STYLE)
    assert (ROOT / "javascript" / script).samefile(app.SCRIPT)


def test_a_port_in_use_is_told_in_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(HypernetworkError, match=f"Port {port} is in use"):
            app.check_port(port)
    with pytest.raises(HypernetworkError, match="Port 99999 "):
        app.check_port(99999)


def test_a_free_port_is_taken():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app.check_port(port)


# --- presets


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_its_options_and_puts_the_others_back(page, name):
    shown = dict(zip(page.train.presets.names(), page.train.presets.choose(name)[1:], strict=True))
    values = page.train.form.values(raw(page.train, **{"max_steps": 7, "layer_norm": True} | shown))
    assert read(TrainingConfig, values) == read(TrainingConfig, preset(name))


def test_a_preset_is_found_in_any_case_and_a_wrong_name_gets_a_hint():
    assert preset("a1111-compatible")["per_layer"] is False
    with pytest.raises(ConfigError, match="'Style'"):
        preset("styles")


def test_a_preset_of_ones_own_is_saved_chosen_and_deleted(page):
    box, form = page.train.presets, raw(page.train, name="birds", max_steps=7, seed=3)
    chosen, help, _ = box.save("my birds", False, *form)
    assert chosen["value"] == "my birds" and "my birds" in chosen["choices"] and "my birds is saved" in text(help) and "Steps 7" in text(help)
    shown = dict(zip(box.names(), box.choose("my birds")[1:], strict=True))
    assert shown["max_steps"] == 7 and "seed" not in shown and "name" not in shown
    assert "already" in text(box.save("my birds", False, *form)[1])
    assert box.save("my birds", True, *raw(page.train, max_steps=8))[2] is False  # replacing is asked for each time
    assert named(page, page.train.poll(""))["hypernetworks_preset"]["choices"][-1] == "my birds"
    for name in ("Style", "nothing"):
        assert 'role="alert"' in box.delete(name)[1]
    assert "my birds" not in box.delete("my birds")[0]["choices"]
    assert "value" not in box.choose("my birds")[1]  # nothing changes


# --- pictures


def test_the_check_shows_pictures_captions_sizes_and_what_is_odd(page, pictures):
    (pictures / "broken.png").write_bytes(b"not a picture")
    html, _, _, name = page.train.pictures.check(str(pictures), "", 128, 32, "residual")
    words = text(html)
    assert "3 pictures , 1 without a caption." in words
    assert html.count("<figure>") == 3 and "a robin</textarea>" in html
    assert "IMG_0001.png" in words and "1 file is left out: broken.png" in words
    assert "128 × 128 1" in words and words.count("× 96 1") + words.count("96 × ") == 2
    assert name == "birds"


@pytest.mark.parametrize(
    ("folder", "sentence"), [("", "Give a folder of pictures"), ("/nowhere/at all", "There is no folder /nowhere/at all.")]
)
def test_a_wrong_folder_is_one_sentence(page, folder, sentence):
    html = page.train.pictures.check(folder, "", 0, 64, "residual")[0]
    assert sentence in text(html) and 'role="alert"' in html


def test_a_wrong_option_is_one_sentence(page, pictures):
    assert "Resolution (resolution) cannot be -5" in page.train.pictures.check(str(pictures), "", -5, 64, "residual")[0]


def test_names_and_captions_cannot_bring_their_own_html(page, pictures):
    Image.new("RGB", (64, 64)).save(pictures / "x<b>&'.png")
    (pictures / "x<b>&'.txt").write_text("</textarea><script>alert(1)</script>")
    html = page.train.pictures.check(str(pictures), '"><i>', 0, 64, "residual")[0]
    assert not re.search("<(script|b|i)>", html)
    tree = ElementTree.fromstring(re.sub(r"<img([^>]*)>", r"<img\1/>", html))
    assert "</textarea><script>alert(1)</script>" in [field.text for field in tree.iter("textarea")]


def test_edited_captions_go_into_text_files_beside_the_pictures(page, pictures):
    (pictures / "two crows.TXT").write_text("crows")
    edits = json.dumps({"folder": str(pictures), "captions": {"IMG_0001.png": " a wren \n", "two crows.png": "three crows"}})
    html, _ = page.train.pictures.save(edits, str(pictures), "", 0, 64, "residual")
    assert "2 captions saved." in html
    assert (pictures / "IMG_0001.txt").read_text(encoding="utf-8") == "a wren\n"
    assert [picture.caption for picture in read_folder(pictures).pictures] == ["a wren", "a robin", "three crows"]


def test_a_generators_pictures_are_checked_folder_by_folder_and_captioned_there(page, tmp_path):
    for place in ("ink/1", "ink/2", "oil/1", "oil/2", "oil/3", "single/1"):
        (tmp_path / "styles" / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), "red").save(tmp_path / "styles" / f"{place}.png")
    (tmp_path / "styles" / "empty").mkdir()
    about = [str(tmp_path / "styles"), "", 64, 64, "generator"]
    html, *_ = page.train.pictures.check(*about)
    assert "5 pictures in 2 folders , 5 without a caption" in text(html)
    assert re.findall(r'data-picture="([^"]+)"', html) == ["ink/1.png", "oil/1.png", "ink/2.png", "oil/2.png", "oil/3.png"]
    assert "A single picture is no group, so it is left out: single." in text(html)
    page.train.pictures.save(json.dumps({"folder": about[0], "captions": {"oil/1.png": "a boat"}}), *about)
    assert (tmp_path / "styles" / "oil" / "1.txt").read_text() == "a boat\n" and not (tmp_path / "styles" / "ink" / "1.txt").exists()


def write_captions(page, folder, edits=""):
    page.train.pictures.begin_captions()
    return page.train.pictures.write_captions(edits, str(folder), "", 0, 64, "residual", progress=lambda *_, **__: None)


def test_captions_are_offered_where_the_host_describes_pictures_and_some_need_it(page, host, pictures):
    def offer():
        return page.train.pictures.check(str(pictures), "", 0, 64, "residual")[2]

    assert not offer()["visible"]
    host.captioner = lambda image: "a wren"
    assert offer()["visible"] and offer()["value"] == "Write captions for 1 picture"
    edits = json.dumps({"folder": str(pictures), "captions": {"IMG_0001.png": "a wren"}})
    assert not page.train.pictures.save(edits, str(pictures), "", 0, 64, "residual")[1]["visible"]


def test_captions_are_written_and_shown_to_be_edited(page, host, pictures):
    Image.new("RGB", (64, 64), "red").save(pictures / "IMG_0002.png")
    host.captioner = lambda image: f"a wren of {image.width} pixels, by Anna Berg"
    html, offer, stop = write_captions(page, pictures)
    assert "2 of 2 captions written." in text(html) and html.count("<figure>") == 4
    assert "a wren of 100 pixels, by Anna Berg</textarea>" in html and "a wren of 64 pixels, by Anna Berg</textarea>" in html
    assert (pictures / "IMG_0001.txt").read_text(encoding="utf-8") == "a wren of 100 pixels, by Anna Berg\n"
    assert not offer["visible"] and not stop["visible"] and host.reports == [(1, 2), (2, 2)]


def test_what_was_typed_on_the_page_counts_before_what_the_host_would_say(page, host, pictures):
    host.captioner = lambda image: "theirs"
    html, *_ = write_captions(page, pictures, json.dumps({"folder": str(pictures), "captions": {"IMG_0001.png": "mine"}}))
    assert "mine</textarea>" in html and (pictures / "IMG_0001.txt").read_text(encoding="utf-8") == "mine\n"


@pytest.mark.parametrize("by_the_host", [False, True])
def test_writing_captions_can_be_stopped(page, host, pictures, by_the_host):
    for number in (2, 3):
        Image.new("RGB", (64, 64), "red").save(pictures / f"IMG_000{number}.png")

    def captioner(image):
        host.interrupted = by_the_host
        if not by_the_host:
            page.train.pictures.stop_captions()
        return "a wren"

    host.captioner = captioner
    html, offer, _ = write_captions(page, pictures)
    assert "1 of 3 captions written." in text(html) and offer["value"] == "Write captions for 2 pictures"
    host.captioner, host.interrupted = lambda image: "a wren", False
    assert "2 of 2 captions written." in text(write_captions(page, pictures)[0])


def test_captions_that_cannot_be_had_are_one_sentence(page, host, pictures):
    host.captioner = lambda image: "a wren<error>"
    html, offer, stop = write_captions(page, pictures)
    assert "IMG_0001.png could not be captioned" in text(html) and 'role="alert"' in html and "written" not in text(html)
    assert html.count("<figure>") == 3 and offer["visible"] and not stop["visible"]
    host.busy = True
    assert "The model is busy with another job." in text(write_captions(page, pictures)[0])
    host.captioner = None
    assert "nothing to write captions with" in text(write_captions(page, pictures)[0])
    assert "There is no folder" in text(write_captions(page, "/nowhere/at all")[0])
    assert not list(pictures.glob("*.txt"))


def test_captions_are_only_written_for_pictures_of_the_folder(pictures):
    dataset = read_folder(pictures)
    names = ["../outside.png", "/etc/passwd", "nothing.png", "a robin.png/../../x.png"]
    assert dataset_check.save_captions(dataset, dict.fromkeys(names, "words")) == []
    assert not list(pictures.parent.glob("*.txt"))


def test_masks_are_counted_and_no_pictures(pictures):
    before = read_folder(pictures)
    Image.new("L", (64, 64)).save(pictures / f"{before.pictures[0].path.stem}-mask.png")
    dataset = read_folder(pictures)
    assert len(dataset.pictures) == len(before.pictures)
    assert "1 picture with a mask." in dataset_check.report(pictures, dataset, 64, 64, 8)
    assert "with a mask" not in dataset_check.report(pictures, before, 64, 64, 8)


def test_pictures_of_numbered_folders_are_told_apart_by_their_folder(pictures):
    for folder in ("10_ink", "2_oil"):
        (pictures / folder).mkdir()
        Image.new("RGB", (64, 64)).save(pictures / folder / "1.png")
    dataset = read_pictures(pictures)
    html = dataset_check.report(pictures, dataset, 64, 64, 8)
    assert 'data-picture="10_ink/1.png"' in html and 'data-picture="2_oil/1.png"' in html
    written = dataset_check.save_captions(dataset, {"2_oil/1.png": "a boat", "1.png": "nothing"})
    assert written == [pictures / "2_oil" / "1.txt"] and written[0].read_text() == "a boat\n"


@settings(max_examples=50)
@given(st.one_of(st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["folder", "captions", "x"]), inner)).map(json.dumps)))  # fmt: skip
def test_whatever_the_page_sends_as_edits_is_read_or_left_alone(sent):
    edits = dataset_check.read_edits(sent)
    assert edits is None or (isinstance(edits[0], Path) and all(isinstance(part, str) for pair in edits[1].items() for part in pair))


def test_dropped_pictures_get_a_folder_of_their_own(page, host, pictures):
    files = sorted(pictures.glob("*.png"))
    first, _ = page.train.pictures.drop([str(file) for file in files])
    second, _ = page.train.pictures.drop([SimpleNamespace(name=str(file)) for file in files])  # as gradio 3 gives them
    assert Path(first).parent == Path(second).parent == host.folders.pictures and first != second
    assert len(read_folder(first).pictures) == len(read_folder(second).pictures) == 3


def test_a_page_that_may_not_name_paths_takes_only_pictures_that_were_sent(page, host, trainer, pictures, monkeypatch):
    monkeypatch.setattr(host, "client_paths", False, raising=False)
    (folder, _), elsewhere = page.train.pictures.drop([str(file) for file in pictures.glob("*.png")]), str(pictures)
    assert "/" not in folder and (host.folders.pictures / folder).is_dir()
    for asked in (elsewhere, "..", "../pictures/" + folder, str(host.folders.pictures / folder)):
        refused, *_ = page.train.pictures.check(asked, "", None, None, "residual")
        assert "no folder of pictures" in refused and 'role="alert"' in refused
        note, _ = page.train.train("", *raw(page.train, name="birds", dataset=asked))
        assert "no folder of pictures" in note and page.jobs.current is None
        note, _ = page.train.train("", *raw(page.train, name="birds", dataset=folder, regularization=asked))
        assert "no folder of pictures" in note and page.jobs.current is None
    assert "3 pictures" in page.train.pictures.check(folder, "", None, None, "residual")[0]
    page.train.train("", *raw(page.train, name="birds", dataset=folder))
    assert Path(trainer.config.dataset) == host.folders.pictures / folder


def test_dropping_nothing_of_use_is_one_sentence(page, tmp_path):
    (tmp_path / "notes.doc").write_text("words")
    _, words = page.train.pictures.drop([str(tmp_path / "notes.doc")])
    assert 'role="alert"' in words and "notes.doc" in words


# --- starting, watching, ending


def test_training_starts_with_what_the_page_says(page, trainer, pictures):
    note, _ = page.train.train("", *raw(page.train, name=" birds ", dataset=str(pictures), max_steps=30, learning_rate="1e-4"))
    assert note == "" and page.jobs.current.running
    assert trainer.config == read(
        TrainingConfig, {**PRESETS["Style"].values, "name": "birds", "dataset": str(pictures), "max_steps": 30, "learning_rate": "1e-4"}
    )
    assert trainer.runs == [{"resume": False, "overwrite": False}]


def test_edited_captions_are_saved_before_training(page, pictures):
    edits = json.dumps({"folder": str(pictures), "captions": {"IMG_0001.png": "a wren"}})
    page.train.train(edits, *raw(page.train, name="birds", dataset=str(pictures)))
    assert (pictures / "IMG_0001.txt").read_text(encoding="utf-8") == "a wren\n"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"name": "birds"}, "Choose the pictures first"),
        ({"dataset": "x"}, "name is needed"),
        ({"dataset": "x", "name": "a/b"}, "cannot be used"),
        ({"dataset": "x", "name": "birds", "max_steps": 0}, "Steps (max_steps) cannot be 0"),
        ({"dataset": "x", "name": "birds", "layer_structure": "1, two, 1"}, "Layer structure"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence_and_starts_nothing(page, values, sentence):
    note, _ = page.train.train("", *raw(page.train, **values))
    assert sentence in text(note) and page.jobs.current is None


def test_an_existing_name_is_asked_about_and_nothing_starts(page, host):
    save(network(), host.folders.networks / "birds.safetensors")
    before = (host.folders.networks / "birds.safetensors").read_bytes()
    note, row = page.train.train("", *raw(page.train, name="birds", dataset="x"))
    assert "birds exists already" in note and row["visible"]
    assert page.jobs.current is None
    assert (host.folders.networks / "birds.safetensors").read_bytes() == before


@pytest.mark.parametrize(("button", "how"), [("go_on", {"resume": True, "overwrite": False}), ("replace", {"resume": False, "overwrite": True})])
def test_an_existing_name_can_be_continued_or_replaced(page, host, trainer, button, how):
    save(network(), host.folders.networks / "birds.safetensors")
    note, row = getattr(page.train, button)("", *raw(page.train, name="birds", dataset="x"))
    assert note == "" and not row["visible"]
    assert trainer.runs == [how]


def test_a_run_that_was_left_is_asked_about(page, host):
    (host.folders.runs / "birds").mkdir(parents=True)
    (host.folders.runs / "birds" / "state.pt").touch()
    note, row = page.train.train("", *raw(page.train, name="birds", dataset="x"))
    assert "was left before its end" in note and row["visible"] and page.jobs.current is None


def test_continuing_a_run_that_did_all_its_steps_says_what_to_change(page, host):
    done = network()
    done.step = 40
    save(done, host.folders.networks / "birds.safetensors")
    (host.folders.runs / "birds").mkdir(parents=True)
    (host.folders.runs / "birds" / "state.pt").touch()
    note, _ = page.train.go_on("", *raw(page.train, name="birds", dataset="x", max_steps=40))
    assert "has done its 40 steps" in note and "80" in note and page.jobs.current is None


def named(page, values):
    return dict(zip([component.elem_id for component in page.train._polled], values, strict=True))


def test_a_page_without_a_run_says_so(page):
    shown = named(page, page.train.poll("x"))
    assert 'data-state="idle"' in shown["hypernetworks_status"]
    assert shown["hypernetworks_train"]["interactive"] and not shown["hypernetworks_stop"]["interactive"]


def test_a_new_page_shows_the_run_and_is_sent_previews_once(page, trainer, tmp_path):
    picture = tmp_path / "preview.png"
    Image.new("RGB", (16, 16), "blue").save(picture)
    trainer.events = [
        event("preview", 0, 30, "a robin", pictures=(picture,)),
        event("step", 12, 30, loss=0.1234, rate=1e-3, seconds_left=200.0),
        event("preview", 12, 30, "a robin", pictures=(picture,)),
    ]
    page.train.train("", *raw(page.train, name="birds", dataset="x"))
    while len(page.jobs.current.previews) < 2:
        assert not page.jobs.current.wait(0.01)
    shown = named(page, page.train.poll(""))
    words = text(shown["hypernetworks_status"])
    assert 'data-state="running"' in shown["hypernetworks_status"] and 'aria-valuenow="40"' in shown["hypernetworks_status"]
    assert "Training birds" in words and "Step 12 of 30 · about 3 minutes left · loss 0.1234 · learning rate 0.001" in words
    assert [caption for _, caption in shown["hypernetworks_previews"]["value"]] == ["step 12: a robin", "step 0: a robin"]
    assert not shown["hypernetworks_train"]["interactive"] and shown["hypernetworks_stop"]["interactive"]
    again = named(page, page.train.poll(shown["hypernetworks_seen"]))
    assert again["hypernetworks_status"] and "value" not in again["hypernetworks_previews"]


def test_the_sheet_comes_first_once_the_run_has_ended(page, trainer, tmp_path):
    run = tmp_path / "run"
    (run / "previews").mkdir(parents=True)
    for path, colour in ((run / "previews" / "step-000001-1.png", "blue"), (run / "sheet.png", "red")):
        Image.new("RGB", (16, 16), colour).save(path)
    trainer.events = [event("preview", 1, 2, "a robin", pictures=(run / "previews" / "step-000001-1.png",)), event("finished", 2, 2)]
    page.train.train("", *raw(page.train, name="birds", dataset="x"))
    while not page.jobs.current.previews:
        assert not page.jobs.current.wait(0.01)
    assert [label for _, label in named(page, page.train.poll(""))["hypernetworks_previews"]["value"]] == ["step 1: a robin"]
    trainer.gate.set()
    page.jobs.current.wait(10)
    first, second = named(page, page.train.poll(""))["hypernetworks_previews"]["value"]
    assert first[0].getpixel((0, 0)) == (255, 0, 0) and "prompts by steps" in first[1] and second[1] == "step 1: a robin"


def test_at_the_end_the_card_tells_of_the_file_and_the_dropdown_has_it(page, host, trainer):
    path = host.folders.networks / "birds.safetensors"
    trainer.events = [event("step", 30, 30, loss=0.1), event("finished", 30, 30, path=path)]
    page.train.train("", *raw(page.train, name="birds", dataset="x"))
    save(network(), path)
    trainer.gate.set()
    page.jobs.current.wait(10)
    shown = named(page, page.train.poll(""))
    assert 'data-state="finished"' in shown["hypernetworks_status"]
    assert str(path) in shown["hypernetworks_card"] and "&lt;hypernet:birds&gt;" in shown["hypernetworks_card"]
    assert shown["hypernetworks_result"]["visible"] and shown["hypernetworks_downloads"]["value"] == [str(path)]
    rows = page.generate.rows
    selected = rows.select(shown["hypernetworks_trained_name"], "None", "None", "None", "None")
    assert selected[0]["value"] == "birds" and "birds" in selected[0]["choices"] and "value" not in selected[1]


def finished_generator(page, host, trainer):
    """What the page shows once a generator called "family" has been trained."""
    made = Hypernetwork(target_layers=["attn2"], embedding_dim=8, hidden_dim=8, rank=2, text_width=16).bind(diffusers_unet())
    made.step = 30
    path = save_generator(made, host.folders.networks / "family.safetensors")
    trainer.events = [event("finished", 30, 30, path=path)]
    page.jobs.start(read(TrainingConfig, {"name": "family", "kind": "generator", "dataset": "x"}), overwrite=True)
    trainer.gate.set()
    page.jobs.current.wait(10)
    return path, named(page, page.train.poll(""))


def test_at_the_end_of_a_generators_run_the_card_tells_of_it_and_it_can_be_tried(page, host, trainer):
    path, shown = finished_generator(page, host, trainer)
    assert shown["hypernetworks_result_note"] == "" and shown["hypernetworks_trained_name"] == "family"
    card = shown["hypernetworks_card"]
    assert str(path) in card and "30 steps" in card and "&lt;hypernet:family&gt;" in card and "Exported as a LoRA file" in card
    assert shown["hypernetworks_result"]["visible"] and not shown["hypernetworks_make_pt"]["visible"]
    assert shown["hypernetworks_downloads"]["value"] == [str(path)]
    assert "cannot be converted to .pt" in page.train.make_pt()[1]


def test_a_generator_that_has_done_its_steps_is_not_gone_on_with_before_there_are_more(page, host, trainer):
    finished_generator(page, host, trainer)
    state = RunFolder(host.folders.runs, "family").state_path
    state.parent.mkdir(parents=True)
    state.touch()
    asked = dict(name="family", kind="generator", dataset="x")
    assert "has done its 30 steps" in page.train.go_on("", *raw(page.train, **asked, max_steps=30))[0]
    assert page.train.go_on("", *raw(page.train, **asked, max_steps=60))[0] == "" and trainer.runs[-1]["resume"]
    page.jobs.current.wait(10)


def test_an_error_of_a_run_stands_in_the_status_without_a_trace(page, trainer):
    trainer.gate = SimpleNamespace(wait=lambda seconds: (_ for _ in ()).throw(HostBusy("The <model> is busy.")), set=lambda: None)
    page.train.train("", *raw(page.train, name="birds", dataset="x"))
    page.jobs.current.wait(10)
    html = page.train.poll("")[0]
    assert 'data-state="failed"' in html and "The &lt;model&gt; is busy." in html and "Traceback" not in html


def test_cancel_asks_first(page):
    page.train.train("", *raw(page.train, name="birds", dataset="x"))
    page.train.cancel(False)
    assert page.jobs.current.running
    page.train.cancel(True)
    assert page.jobs.current.wait(10)


# --- the queue


def test_runs_wait_in_a_table_whose_buttons_move_edit_and_remove_them(page, trainer):
    for name in ("birds", "crows", "wrens"):
        note, row = page.train.enqueue("", *raw(page.train, name=name, dataset="x", max_steps=len(name), flip=name == "wrens"))
        assert note == "" and not row["visible"]
    assert page.jobs.current.config.name == "birds" and page.jobs.current.running
    shown = named(page, page.train.poll(""))
    words = text(shown["hypernetworks_queue"])
    assert "2 runs wait" in words and words.index("crows") < words.index("wrens") and "Mirror pictures on" in words and "birds" not in words
    second, third = (one.number for one in page.jobs.queue.waiting)
    box = page.train.queue
    said, html, _ = box.act(f"up {third}")
    assert said == "" and text(html).index("wrens") < text(html).index("crows")
    note, html, _, *values = box.edit(f"edit {second}")
    assert "crows, which is out of the queue" in note and "crows" not in html
    assert read(TrainingConfig, page.train.form.values(values)).name == "crows"
    assert 'role="alert"' in box.act(f"down {second}")[0] and 'role="alert"' in box.edit("edit x")[0]
    assert box.act(f"remove {third}")[1] == "" and page.jobs.queue.waiting == []


def test_a_held_queue_says_so_and_starts_when_told(page):
    page.train.train("", *raw(page.train, name="birds", dataset="x"))
    page.train.enqueue("", *raw(page.train, name="crows", dataset="x"))
    html, button = page.train.queue.hold()
    assert "held" in text(html) and button["value"] == "Start the queue" and button["visible"]
    page.trainer.gate.set()
    assert page.jobs.current.wait(10) and page.jobs.current.config.name == "birds"
    html, button = page.train.queue.hold()
    assert page.jobs.current.config.name == "crows" and not button["visible"]
    assert page.jobs.current.wait(10)
    html, _ = page.train.queue.now()
    assert "No run waits" in text(html) and 'data-ended="failed"' in html  # the stand-in ends without a word


def test_a_name_of_the_queue_cannot_bring_its_own_html(page):
    page.train.train("", *raw(page.train, name="birds", dataset="x"))
    page.train.enqueue("", *raw(page.train, name="a&b 'c'", dataset="x", learning_rate="<script>1e-4</script>"))
    html = page.train.queue.now()[0]
    assert "<script" not in html and "a&amp;b" in html
    ElementTree.fromstring(html.replace("<br>", "<br/>").replace(" disabled>", ">"))


def test_what_is_to_replace_a_network_waits_for_its_turn(page, host):
    save(network(), host.folders.networks / "birds.safetensors")
    page.train.train("", *raw(page.train, name="crows", dataset="x"))
    note, row = page.train.enqueue("", *raw(page.train, name="birds", dataset="x"))
    assert "exists already" in note and row["visible"] and page.jobs.queue.waiting == []
    page.train.replace("", *raw(page.train, name="birds", dataset="x"))
    (one,) = page.jobs.queue.waiting
    assert one.config.name == "birds" and one.overwrite


def test_a_sweep_is_queued_and_its_table_is_shown(page):
    form = raw(page.train, name="birds", dataset="x")
    assert "2 runs of the sweep birds" in text(page.train.add_sweep("", *form, "Learning rate: auto*0.5, auto"))
    assert [one.config.learning_rate for one in page.jobs.queue.waiting] == ["auto"] and page.jobs.current.config.learning_rate == "auto*0.5"
    html = named(page, page.train.poll(""))["hypernetworks_sweep_table"]
    assert "Sweep birds" in html and "auto*0.5" in html and html.count("<tr") == 3
    for lines, words in (("", "no lists"), ("steps", "no line of a sweep"), ("learning_rate: auto, auto*0.5", "in the queue already")):
        assert words in text(page.train.add_sweep("", *form, lines))
    assert len(page.jobs.queue.waiting) == 1


# --- words and drawings


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 second"), (40, "40 seconds"), (200, "3 minutes"), (3600, "1 hour"), (7500, "2 hours 5 minutes"), (3599, "1 hour")],
)
def test_time_is_said_in_words(seconds, words):
    assert markup.duration(seconds) == words


def test_the_chart_is_an_svg_with_all_three_lines_and_labels():
    losses = [(step, 1 / step) for step in range(1, 31)]
    svg = ElementTree.fromstring(progress.chart(losses, [(0, 0.9), (30, 0.2)], 60))
    lines = {line.get("class"): line.get("points").split() for line in svg.iter("polyline")}
    assert {kind: len(points) for kind, points in lines.items()} == {
        "hypernetworks-loss": 30, "hypernetworks-mean": 30, "hypernetworks-validation": 2,
    }  # fmt: skip
    words = "".join(svg.itertext())
    assert "step" in words and "loss" in words and "Validation loss" in words
    last_x = float(lines["hypernetworks-loss"][-1].split(",")[0])
    middle = progress.LEFT + (progress.WIDTH - progress.LEFT - progress.RIGHT) / 2
    assert last_x == pytest.approx(middle, abs=0.1)  # step 30 of 60


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60), st.lists(st.floats(-1e6, 1e6), max_size=5))
def test_every_point_of_a_chart_lies_within_it(losses, validation):
    svg = ElementTree.fromstring(progress.chart(list(enumerate(losses)), list(enumerate(validation))))
    for line in svg.iter("polyline"):
        for point in line.get("points").split():
            x, y = map(float, point.split(","))
            assert progress.LEFT - 0.1 <= x <= progress.WIDTH - progress.RIGHT + 0.1
            assert progress.TOP - 0.1 <= y <= progress.HEIGHT - progress.BOTTOM + 0.1


def test_the_running_mean_is_the_mean_of_the_last_tenth():
    points = [(step, float(step % 7)) for step in range(50)]
    smooth = progress.running_mean(points)
    for index in (0, 3, 30, 49):
        window = [y for _, y in points[max(0, index - 4) : index + 1]]
        assert smooth[index] == (index, pytest.approx(sum(window) / len(window)))


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_evenly_spaced_within_the_range(low, span, count):
    high = low + span
    ticks = progress.ticks(low, high, count)
    assert len(ticks) <= count + 2
    assert all(low - 1e-6 * abs(low) - 1e-9 <= tick <= high + 1e-6 * abs(high) + 1e-9 for tick in ticks)


# --- the file


def test_a_network_per_width_becomes_a_pt_with_the_same_weights(tmp_path):
    path = save(network(), tmp_path / "birds.safetensors")
    pt = result.write_pt(path, tmp_path / "downloads")
    assert pt.name == "birds.pt"
    before, after = load(path), load(pt)
    for part in (0, 1):
        for mine, theirs in zip(before.pair(8)[part].parameters(), after.pair(8)[part].parameters(), strict=True):
            assert torch.equal(mine, theirs)


def test_a_network_per_layer_is_no_pt_and_the_card_says_so(tmp_path):
    path = save(network(per_layer=True), tmp_path / "birds.safetensors")
    with pytest.raises(ConfigError, match="One pair per layer"):
        result.write_pt(path, tmp_path)
    assert "One pair per layer" in result.card(path)
    assert not list(tmp_path.glob("*.pt"))


# --- generating


NO_ROWS = ["None", 1, 0, 1] * 4


def generate(tab, prompt="a star", rows=NO_ROWS, seed=5, width=128, compare=True):
    return tab.generate(prompt, "", 4, 3, width, 128, seed, compare, *rows, progress=lambda *_, **__: None)


def test_rows_with_a_name_are_active_in_their_order(tab):
    rows = ["birds", 0.5, 0, 1, "None", 1, 0, 1, "", 1, 0, 1, "stars", -1, 0.2, 0.8]
    assert tab.rows.active(rows) == [ActiveNetwork("birds", 0.5), ActiveNetwork("stars", -1.0, start=0.2, end=0.8)]
    assert extract(tab.rows.write_tags(*rows))[1] == tab.rows.active(rows)
    assert tab.rows.write_tags(*NO_ROWS) == ""


def test_a_picture_is_drawn_beside_the_same_seed_without(tab, host):
    words, picture, plain = generate(tab, "a star <hypernet:stars:0.5>", ["birds", 0.8, 0, 1, *NO_ROWS[4:]])
    assert tab.session.active == [[ActiveNetwork("birds", 0.8), ActiveNetwork("stars", 0.5)], []]
    assert [request.prompt for request in host.requests] == ["a star ", "a star "] and host.requests[0] == host.requests[1]
    assert picture.size == plain.size == (128, 128)
    assert "Seed 5." in words and "A width is left unused." in words


def test_without_networks_one_picture_is_enough(tab, host):
    assert generate(tab)[2] is None
    assert generate(tab, rows=["birds", 1, 0, 1, *NO_ROWS[4:]], compare=False)[2] is None
    assert len(host.requests) == 2


def test_a_seed_of_minus_one_is_another_one_each_time_and_is_told(tab, host):
    words = [generate(tab, seed=-1)[0] for _ in range(2)]
    assert host.requests[0].seed != host.requests[1].seed
    assert all(f"Seed {request.seed}." in said for request, said in zip(host.requests, words, strict=True))


def test_a_size_is_cut_to_whole_latent_cells(tab, host):
    generate(tab, width=133)
    assert (host.requests[0].width, host.requests[0].height) == (128, 128)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"prompt": "<hypernet:stars:much>"}, "cannot be read"),
        ({"rows": ["birds", 1, 0.9, 0.1, *NO_ROWS[4:]]}, "the start first"),
        ({"seed": 2**40}, "The seed can be at most"),
        ({"width": None}, "at least 8 pixels"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(tab, host, arguments, sentence):
    words, picture, plain = generate(tab, **arguments)
    assert sentence in text(words) and picture is None and plain is None and host.requests == []


def test_a_busy_model_is_one_sentence(tab, host):
    host.busy = True
    assert "The model is busy" in generate(tab)[0]


def test_refreshing_finds_new_files_and_forgets_lost_ones(tab, host):
    rows = tab.rows
    rows.catalog.refresh()
    save(network(), host.folders.networks / "new.safetensors")
    first, second, *_ = rows.refresh("new", "gone", "None", "None")
    assert first["choices"] == second["choices"] == ["None", "new"] and second["value"] == "None"
    assert "value" not in first, "what was chosen on the page meanwhile would be chosen no longer"


def test_a_path_that_leads_to_a_file_stays_chosen_though_it_is_not_listed(tab, host):
    (host.folders.networks / "s").mkdir()
    save(network(), host.folders.networks / "s" / "any.safetensors")
    first, second, *_ = tab.rows.refresh("s/any", "s/other", "None", "None")
    assert "value" not in first and second["value"] == "None"


# --- conditions of generators


@pytest.fixture
def conditions(tab, host):
    """The questions about them, and a generator called "any" for texts and tasks."""
    made = Hypernetwork(embedding_dim=16, hidden_dim=16, basis_size=2, conditions=("text",), tasks=("day", "night")).bind(diffusers_unet())
    save_generator(made, host.folders.networks / "any.safetensors")
    save(network(), host.folders.networks / "birds.safetensors")
    return tab.rows.questions


UNSAID = ["The prompt", "", "", "", "The prompt", "", "", "", 0.0]


def test_a_generator_is_offered_with_all_values_and_another_network_hides_the_box(conditions):
    def shown(*asked):
        return dict(zip(conditions.offered, conditions.offer(*asked), strict=True))

    first = conditions.first
    found = shown("any", *UNSAID)
    assert found[conditions.box]["visible"] and found[first.kind]["choices"] == ["The prompt", "A text", "A task"]
    assert found[first.kind]["value"] == "The prompt" and not any(found[one]["visible"] for one in (first.text, first.picture, first.task))
    assert found[first.text]["value"] == found[first.reference] == "" and "No picture yet" in found[first.shown]
    assert found[first.task]["choices"] == ["day", "night"] and not found[conditions.second_box]["visible"]
    found = shown("any", "A task", "", "", "night", "A text", "ink", "", "", 0.4)
    assert found[first.kind]["value"] == "A task" and found[first.task]["visible"] and found[first.task]["value"] == "night"
    assert found[conditions.second.text]["value"] == "ink" and found[conditions.blend] == 0.4 and found[conditions.second_box]["visible"]
    assert not shown("birds", *UNSAID)[conditions.box]["visible"]


def test_what_is_chosen_reaches_the_network_and_its_tag(tab):
    said = ConditionInputs.said(["A text", "ink: black", "", "", "A reference picture", "", "0123456789", "", 0.3])
    rows = ["any", 0.5, 0, 1, *NO_ROWS[4:16], said, "", "", ""]
    (active,) = tab.rows.active(rows)
    assert active == ActiveNetwork(
        "any", 0.5, condition=ConditionSource("text", "ink: black"), second=ConditionSource("reference", "0123456789"), blend=0.3)
    assert tab.rows.write_tags(*rows) == "<hypernet:any:0.5:text=ink%3A black:ref2=0123456789:blend=0.3>"
    assert tab.rows.values([active]) == rows


def test_the_page_is_told_which_networks_are_generators_and_what_for(tab, conditions):
    told = json.loads(tab.rows.ask("any", "birds", "gone", "None"))
    about = {"kinds": ["The prompt", "A text", "A task"], "tasks": ["day", "night"]}
    assert told == {"any": about, "birds": None, "gone": None, "None": None}


def test_a_reference_picture_is_kept_and_shown_and_a_bad_one_is_told(conditions, host, tmp_path):
    Image.new("RGB", (20, 10), "teal").save(tmp_path / "teal.png")
    (tmp_path / "bad.png").write_text("no picture")
    name, shown, _ = conditions.first.keep(str(tmp_path / "teal.png"))
    assert (host.folders.references / f"{name}.png").is_file() and name in shown and "<img" in shown
    kept, shown, _ = conditions.first.keep(str(tmp_path / "bad.png"))
    assert "value" not in kept, "it would take the place of one that was pasted meanwhile"
    assert "The reference picture cannot be used" in shown
    assert "is not on this computer" in conditions.first.show("0123456789")


def test_a_reference_picture_that_is_missing_is_asked_for(tab, host):
    said = ConditionInputs.said(["A reference picture", "", "", "", *UNSAID[4:]])
    words, picture, _ = generate(tab, rows=["any", 1, 0, 1, *NO_ROWS[4:16], said, "", "", ""])
    assert "Drop in a reference picture first" in words and picture is None and host.requests == []


def test_the_prompt_is_told_to_the_session_without_its_tags(tab):
    generate(tab, "a star<hypernet:any>")
    assert tab.session.prompts == ["a star"]
