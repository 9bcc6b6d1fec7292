"""The tab "Library" without a browser: what it shows and what its buttons do."""
import io
import json
import re
import threading
from contextlib import nullcontext
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from models import diffusers_unet, generator
from PIL import Image

pytest.importorskip("gradio", reason="the page needs gradio")

import gradio as gr

from hypernetworks.catalog import Catalog
from hypernetworks.checkpoint import Row, RunFolder
from hypernetworks.config import TrainingConfig, read
from hypernetworks.files import describe, preview_text, save
from hypernetworks.generator import Hypernetwork
from hypernetworks.generator_files import save_generator
from hypernetworks.host import Folders, ModelFacts
from hypernetworks.jobs import Jobs
from hypernetworks.library import Entry, Library
from hypernetworks.residual import ResidualHypernetwork, ResidualStructure
from hypernetworks.ui import library_table
from hypernetworks.ui.library_details import panel
from hypernetworks.ui.library_tab import AVERAGE, CHAIN, LibraryTab
from hypernetworks.ui.library_table import Table, matching, thumbnail
from hypernetworks.ui.train_tab import TrainTab

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
ALL = ("", "Newest first")  # search and order


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The tab and the training tab in one page, built once."""
    folders = Folders.below(tmp_path_factory.mktemp("built"))
    host = SimpleNamespace(
        folders=folders, model=ModelFacts("small", "0", "sd1", "epsilon", 128), client_paths=True, captioner=None
    )
    jobs = Jobs(host)
    library = Library(Catalog(folders.networks), folders)
    with gr.Blocks(analytics_enabled=False) as demo:
        train = TrainTab(host, jobs)
        tab = LibraryTab(host, library, jobs)
    return SimpleNamespace(host=host, jobs=jobs, train=train, tab=tab, demo=demo)


@pytest.fixture
def page(built, tmp_path):
    """The page with three networks: ink with a run, fog as .pt too, layers with a pair per layer."""
    folders = Folders.below(tmp_path)
    folders.networks.mkdir()
    built.host.folders, built.jobs.current = folders, None
    library = built.tab.library = built.tab.rows.library = built.tab.exporting.library = Library(Catalog(folders.networks), folders)
    built.tab.exporting.conditions.catalog = library.catalog
    put(folders, "ink", step=300, preview=preview_text(Image.new("RGB", (40, 40), "red")), date="2025-01-01", settings=json.dumps({"max_steps": 300}))
    put(folders, "fog", seed=2, base_model="sd_xl", date="2024-01-01")
    put(folders, "layers", {LAYER: 8}, date="2023-01-01")
    run = RunFolder(folders.runs, "ink")
    run.begin({"options": {"dataset": "pictures of ink"}}, 0)
    run.state_path.touch()
    for step in range(1, 31):
        run.add_row(Row(step, 1 / step, None, 1e-3))
        run.add_row(Row(step, None, 0.5, None))
    built.folders = folders
    return built


def put(folders, name, widths=None, seed=1, structure=(1, 0.5, 1), step=7, activation="linear", **metadata):
    network = ResidualHypernetwork(widths or {8: 8}, ResidualStructure(structure, activation), "Normal", seed)
    network.step = step
    network.metadata.update(metadata)
    return save(network, folders.networks / f"{name}.safetensors")


def named(tab, values, of="_acted"):
    components = [*([tab.note] if of == "_opened" else []), *getattr(tab, of)]
    return {component.elem_id.removeprefix("hypernetworks_library_"): value for component, value in zip(components, values, strict=True)}


def rows(html):
    return re.findall(r'<tr data-hypernetwork="([^"]*)"', html)


def text(html):
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", html)).strip()


def unchanged(value):
    return isinstance(value, dict) and "value" not in value


# --- the table


def test_the_table_has_a_row_per_network_with_what_is_known(page):
    html = page.tab.rows.refreshed()
    assert rows(html) == ["ink", "fog", "layers"]
    row = html[html.index('"fog"') : html.index('"layers"')]
    size = (page.folders.networks / "fog.safetensors").stat().st_size
    assert re.search(rf"fog per width 8 {max(1, round(size / 1e3))} KB 7 sd_ xl 2024-01-01", text(row))
    assert html.count("<img") == 1 and "data:image/jpeg;base64," in html[html.index('"ink"') : html.index('"fog"')]


def test_what_is_selected_is_marked(page):
    assert re.findall(r'hypernetwork="(\w+)" aria-selected="true"', page.tab.rows.refreshed(selected="fog")) == ["fog"]


@pytest.mark.parametrize(
    ("search", "order", "found"),
    [
        ("", "Name", ["fog", "ink", "layers"]), ("", "Most steps first", ["ink", "fog", "layers"]), ("SD_XL", "Name", ["fog"]),
        ("per layer", "Name", ["layers"]), ("nothing", "Name", []), ("", "Base model", ["fog", "ink", "layers"]), ("o f", "", ["fog"]),
    ],
)  # fmt: skip
def test_searching_and_ordering(page, search, order, found):
    page.tab.rows.refreshed()
    html = page.tab.rows.html(search, order)
    assert rows(html) == found
    assert ("of 3 hypernetworks" in text(html)) == (len(found) < 3)


def test_only_the_first_of_very_many_are_on_the_page(page, monkeypatch):
    monkeypatch.setattr(library_table, "SHOWN", 2)
    html = page.tab.rows.refreshed()
    assert rows(html) == ["ink", "fog"] and "3 hypernetworks , the first 2 shown" in text(html)


def test_a_damaged_file_shows_its_sentence_and_a_pt_how_to_learn_more(page):
    (page.folders.networks / "broken.safetensors").write_bytes(b"x")
    save(ResidualHypernetwork({8: 8}), page.folders.networks / "old.pt")
    html = page.tab.rows.refreshed()
    assert "broken.safetensors is damaged" in html and "once it has been opened" in html
    page.tab.open("old")
    assert "once it has been opened" not in page.tab.rows.refreshed()


def test_an_empty_folder_says_what_to_do(page):
    for file in page.folders.networks.iterdir():
        file.unlink()
    assert "There are no hypernetworks" in page.tab.rows.refreshed()


def test_nothing_from_a_file_becomes_html(page):
    evil = "<img src=x onerror=alert(1)>\"'"
    put(
        page.folders, "a'b&c", base_model=evil, dataset_size=evil, settings=json.dumps({evil: evil, "loss": [evil]}), merged_by=evil,
        merged_from=json.dumps([{"name": evil, "weight": 1}]),
    )  # fmt: skip
    page.tab.library.set_notes("a'b&c", evil)
    table, opened = page.tab.rows.refreshed(), named(page.tab, page.tab.open("a'b&c"), "_opened")
    for html in (table, opened["details"]):
        assert "<img src=x" not in html and "&lt;img src=x" in html
        ElementTree.fromstring("<x>" + re.sub(r"<(img[^>]*|wbr)>", r"<\1/>", html) + "</x>")
    assert opened["notes"] == evil


@pytest.mark.parametrize("data", [None, b"", b"no picture", b"\xff\xd8\xff", b"GIF89a"])
def test_what_is_no_picture_has_no_thumbnail(data):
    assert thumbnail(data, 64) == ""


def test_a_thumbnail_is_small_and_a_picture_of_too_many_pixels_is_not_opened(monkeypatch):
    buffer = io.BytesIO()
    Image.new("RGB", (400, 300)).save(buffer, "PNG")
    assert thumbnail(buffer.getvalue(), 64).startswith("data:image/jpeg;base64,")
    monkeypatch.setattr(library_table, "MOST_PIXELS", 400 * 300 - 1)
    assert thumbnail(buffer.getvalue(), 64) == ""


def test_another_picture_beside_the_file_is_seen(page):
    before = page.tab.rows.refreshed()
    Image.new("RGB", (64, 64), "blue").save(page.folders.networks / "fog.png")
    assert page.tab.rows.refreshed().count("<img") == before.count("<img") + 1


def test_orders_cope_with_what_is_not_known(tmp_path):
    entries = [Entry("b", tmp_path / "b.pt", 1, 0.0), Entry("a", tmp_path / "a.pt", 2, 5.0, step=3, base_model="m")]
    for order in library_table.SORTINGS:
        assert {entry.name for entry in matching(entries, "", order)} == {"a", "b"}
    assert "–" in library_table.date_of(0.0)


# --- one network


def test_opening_shows_card_settings_chart_and_notes(page):
    page.tab.library.set_notes("ink", "good at 0.7")
    shown = named(page.tab, page.tab.open("ink"), "_opened")
    words = text(shown["details"])
    assert shown["note"] == "" and shown["selected"] == shown["new_name"] == "ink" and shown["panel"]["visible"]
    assert shown["notes"] == "good at 0.7" and shown["convert"]["interactive"] and shown["convert"]["value"] == "Convert to .pt"
    assert page.tab.library.details("ink").hash in words and "300 steps" in words and "&lt;hypernet:ink&gt;" in words
    assert "Steps 300" in words and shown["resume"]["interactive"]
    lines = re.findall(r'polyline class="hypernetworks-(\w+)" points="([^"]*)"', shown["details"])
    assert {kind: len(points.split()) for kind, points in lines} == {"loss": 30, "mean": 30, "validation": 30}


def test_what_cannot_be_done_with_a_file_is_not_offered(page):
    (page.folders.networks / "broken.safetensors").write_bytes(b"x")
    save(ResidualHypernetwork({8: 8}), page.folders.networks / "old.pt")
    put(page.folders, "styles/dotted")
    offered = {}
    for name in ("ink", "layers", "broken", "old", "dotted"):
        shown = named(page.tab, page.tab.open(name), "_opened")
        offered[name] = (shown["convert"]["interactive"], shown["resume"]["interactive"])
    assert offered == {"ink": (True, True), "layers": (False, True), "broken": (False, False), "old": (True, False), "dotted": (True, False)}


def test_a_network_that_was_renamed_says_under_which_name_it_was_trained(page):
    network = ResidualHypernetwork({8: 8})
    network.name = "first"
    save(network, page.folders.networks / "second.safetensors")
    assert "under the name first" in panel(page.tab.library.details("second"))


def test_a_generator_is_shown_as_one(page):
    made = Hypernetwork(target_layers=["attn2"], embedding_dim=8, hidden_dim=8, rank=2, text_width=16).bind(diffusers_unet())
    made.metadata.update(base_model="small", dataset_size="40")
    save_generator(made, page.folders.networks / "maker.safetensors")
    assert "maker generator attn2, rank 2" in text(page.tab.rows.refreshed("maker"))
    shown = named(page.tab, page.tab.open("maker"), "_opened")
    assert not shown["convert"]["interactive"] and shown["resume"]["interactive"] and shown["export_box"]["visible"]
    said, _, *form = page.train.resume("maker")
    assert "Continue training" in said and page.train.form.values(form)["kind"] == "generator"
    words = text(shown["details"])
    for said in (
        "generator of low-rank weights, rank 2", "a text or a reference picture", f"{len(made.layers)} projections (q, k, v, out of attn2)",
        "0 steps, 40 pictures, with small", "cannot be converted to .pt or merged",
    ):  # fmt: skip
        assert said in words
    assert not named(page.tab, page.tab.open("ink"), "_opened")["export_box"]["visible"]


def test_a_generators_tasks_are_shown_and_offered(page):
    save_generator(generator(diffusers_unet(), conditions=("task",)), page.folders.networks / "maker.safetensors")
    shown = named(page.tab, page.tab.open("maker"), "_opened")
    assert "Tasks etching, fresco" in text(shown["details"])
    assert shown["condition_export"]["choices"] == ["A task"] and shown["task_export"]["choices"] == ["etching", "fresco"]


def test_a_generator_is_neither_converted_nor_merged_and_says_so(page):
    save_generator(generator(diffusers_unet()), page.folders.networks / "maker.safetensors")
    assert "maker is a generator and cannot be written as a .pt" in page.tab.convert("maker", *ALL)[0]
    assert "maker is a generator and cannot be merged" in merge(page, "mist", AVERAGE, ("ink", 1), ("maker", 1))["note"]


def test_a_name_that_is_gone_is_one_sentence(page):
    shown = named(page.tab, page.tab.open("inc"), "_opened")
    assert "Did you mean ink" in text(shown["note"]) and all(unchanged(value) for name, value in shown.items() if name != "note")


def test_renaming_opens_the_new_name_and_tells_the_page(page):
    first = named(page.tab, page.tab.rename("black", "ink", *ALL))
    assert "ink is called black now" in first["note"] and first["selected"] == "black"
    assert rows(first["table"]) == ["black", "fog", "layers"] and 'data-opened="black"' in first["details"]
    assert named(page.tab, page.tab.rename("ink", "black", *ALL))["changed"] != first["changed"]


@pytest.mark.parametrize("new", ["fog", "a/b", "", "  "])
def test_a_wrong_name_is_one_sentence_and_changes_nothing(page, new):
    shown = named(page.tab, page.tab.rename(new, "ink", *ALL))
    assert 'role="alert"' in shown["note"] and all(unchanged(value) for name, value in shown.items() if name != "note")
    assert (page.folders.networks / "ink.safetensors").is_file()


def test_notes_are_kept(page):
    shown = named(page.tab, page.tab.save_notes("wide <lines>", "ink", *ALL))
    assert "saved" in shown["note"]
    assert unchanged(shown["notes"]) and unchanged(shown["selected"])  # another one may be open by now, with notes that are still to be saved
    assert describe(page.folders.networks / "ink.safetensors").description == "wide <lines>"


def test_what_is_open_already_is_not_opened_again_under_the_user(page):
    assert all(unchanged(value) for value in page.tab.open_other("ink", "ink"))
    assert named(page.tab, page.tab.open_other("fog", "ink"), "_opened")["selected"] == "fog"


def test_converting_leaves_the_other_format_beside_it(page):
    shown = named(page.tab, page.tab.convert("ink", *ALL))
    assert "ink.pt is beside it now" in shown["note"] and (page.folders.networks / "ink.pt").is_file()
    assert unchanged(shown["selected"]) and "ink.pt" in text(named(page.tab, page.tab.open("ink"), "_opened")["details"])
    assert "already" in named(page.tab, page.tab.convert("ink", *ALL))["note"]


def test_deleting_happens_only_when_confirmed(page):
    assert all(unchanged(value) for value in page.tab.delete(False, "ink", *ALL))
    assert (page.folders.networks / "ink.safetensors").is_file()
    shown = named(page.tab, page.tab.delete(True, "ink", *ALL))
    (trash,) = (page.folders.data / "trash").iterdir()
    assert str(trash) in text(shown["note"]) and shown["selected"] == "" and not shown["panel"]["visible"]
    assert rows(shown["table"]) == ["fog", "layers"]


def test_what_is_being_trained_is_left_alone(page):
    class Trainer:
        gate = threading.Event()

        def run(self, host, resume, overwrite):
            yield SimpleNamespace(kind="step", step=1, steps=2, loss=0.1, message="", pictures=(), path=None, validation_loss=None)
            assert self.gate.wait(10)

        def stop(self):
            pass

    page.host.exclusive, page.host.report = nullcontext, lambda *_: False
    page.jobs._make_trainer = lambda config: Trainer()
    page.jobs.start(read(TrainingConfig, {"name": "ink"}))
    try:
        for act in (page.tab.rename("black", "ink", *ALL), page.tab.delete(True, "ink", *ALL), page.tab.save_notes("x", "ink", *ALL)):
            assert "ink is being trained" in named(page.tab, act)["note"]
        assert "called black" in named(page.tab, page.tab.rename("black", "fog", *ALL))["note"]
    finally:
        Trainer.gate.set()
        page.jobs.current.wait(10)
    assert "called white" in named(page.tab, page.tab.rename("white", "ink", *ALL))["note"]


# --- several


def merge(page, new, how, *parts):
    filled = [*parts, *[("", 1)] * (4 - len(parts))]
    return named(page.tab, page.tab.merge(new, how, "", *ALL, *(value for part in filled for value in part)))


def test_adding_fills_the_first_free_place_until_there_is_none(page):
    said, *names = page.tab.add("ink", "", " fog ", None, "")
    assert names == ["ink", "fog", "", ""] and "ink is among those" in said
    said, *names = page.tab.add("ink", "a", "b", "c", "d")
    assert names == ["a", "b", "c", "d"] and 'role="alert"' in said


def test_merging_makes_a_file_and_opens_it(page):
    shown = merge(page, " mist ", AVERAGE, ("ink", 1), ("fog", 3))
    assert "mist is made of ink, fog" in shown["note"] and shown["selected"] == "mist" and "mist" in rows(shown["table"])
    assert "average of ink (1), fog (3)" in text(shown["details"])


def test_chaining_makes_one_file_where_it_can_and_gives_the_tags_where_not(page):
    put(page.folders, "wide", structure=(1, 2, 1))
    put(page.folders, "bent", activation="relu")
    assert "one after the other instead" in merge(page, "mist", AVERAGE, ("ink", 1), ("wide", 1))["note"]
    assert "chain of ink (0.5), wide (2)" in text(merge(page, "mist", CHAIN, ("ink", 0.5), ("wide", 2))["details"])
    assert "<hypernet:ink:0.7> <hypernet:bent>" in text(merge(page, "more", CHAIN, ("ink", 0.7), ("bent", 1))["note"]).replace("&lt;", "<").replace("&gt;", ">")


@pytest.mark.parametrize(
    ("new", "parts", "sentence"),
    [
        ("", [("ink", 1), ("fog", 1)], "name is needed"),
        ("mist", [], "at least two"),
        ("mist", [("ink", 1), ("fog", None)], "fog needs a weight"),
        ("mist", [("ink", 1), ("fgo", 1)], "Did you mean fog"),
        ("fog", [("ink", 1), ("fog", 1)], "named fog already"),
    ],
)
def test_what_cannot_be_merged_is_one_sentence(page, new, parts, sentence):
    assert sentence in text(merge(page, new, AVERAGE, *parts)["note"])
    assert not (page.folders.networks / "mist.safetensors").exists()


# --- going on with the training


def test_the_training_form_is_filled_with_the_files_options(page):
    said, taken, *shown = page.train.resume("ink")
    values = page.train.form.values(shown)
    config = read(TrainingConfig, values)
    assert (config.name, config.dataset, config.max_steps, config.layer_structure) == ("ink", "pictures of ink", 600, (1, 0.5, 1))
    assert config.per_layer is False and "Continue training" in said and not taken["visible"]


def test_what_cannot_go_on_leaves_the_form_as_it_is(page):
    said, _, *shown = page.train.resume("old")
    assert 'role="alert"' in said and all(unchanged(value) for value in shown)


def test_element_ids_are_our_own_and_unique(page):
    ids = [block.elem_id for block in page.demo.blocks.values() if block.elem_id]
    assert len(ids) == len(set(ids)) and all(elem_id.startswith("hypernetworks_") for elem_id in ids)


def test_the_table_can_be_made_without_a_page(page):
    assert rows(Table(page.tab.library).refreshed("ink")) == ["ink"]
