"""The generation panel's questions about generators, in a real browser and with answers that come late.

Run with `pytest -m browser tests/test_browser_panel.py`. Nothing is drawn; the page has a panel and a button that pastes into it, as a web UI's has.
"""
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio", reason="the page needs gradio")

import gradio as gr
from browsing import Page

from hypernetworks.catalog import Catalog
from hypernetworks.host import Folders
from hypernetworks.prompt import extract
from hypernetworks.ui import app, compatibility
from hypernetworks.ui.generation_panel import NetworkRows

pytestmark = pytest.mark.browser
KNOWN = {"any": ("text", "image", "task"), "other": ("text", "image"), "birds": ()}
TWO = "<hypernet:any:text=ink> <hypernet:other:text=fog>"


class SlowCatalog(Catalog):
    """Names without files: what each network was made for is told after a delay."""

    delays: dict[str, float] = {}  # seconds

    def names(self):
        return list(KNOWN)

    def describe_generator(self, name):
        time.sleep(self.delays.get(name, 0))
        conditions = KNOWN.get(name)
        return SimpleNamespace(structure=SimpleNamespace(conditions=conditions, tasks=("day", "night"))) if conditions else None


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A page with a panel, and a field and a button that paste tags into it."""
    folders = Folders.below(tmp_path_factory.mktemp("home"))
    with compatibility.page("Panel", app._style(), app._script()) as demo:
        with gr.Column(elem_id="hypernetworks_train"):
            rows = NetworkRows(SimpleNamespace(folders=folders), SlowCatalog(folders.networks))
        tags, button = gr.Textbox(elem_id="hypernetworks_infotext"), gr.Button("Paste", elem_id="hypernetworks_paste")

        def pasted(text):
            active = extract(text)[1]
            return [*rows.values(active), *rows.asked(active)]

        button.click(pasted, [tags], [*rows.inputs, rows.which, *rows.questions.inputs])
    yield compatibility.serve(demo, app._style(), app._script())
    demo.close(verbose=False)


@pytest.fixture
def page(browser, address):
    SlowCatalog.delays = {}
    opened = Page(browser, address)
    opened.tab.set_default_timeout(20_000)
    opened.unfold("more_networks")
    yield opened
    assert opened.errors == []
    opened.tab.close()


def tags_are(page, tags):
    deadline = time.monotonic() + 10
    while shown(page, "tags") != tags and time.monotonic() < deadline:
        time.sleep(0.1)
    assert shown(page, "tags") == tags


def paste(page, tags):
    page.fill("infotext", tags)
    page.click("paste")


def kind(page, words, ending="generator"):
    page.find(f"condition_{ending}").locator("label").filter(has_text=words).first.click()


def answer(page, text, ending="generator"):
    kind(page, "A text", ending)
    page.find(f"text_{ending}").wait_for(state="visible")
    page.fill(f"text_{ending}", text)


def shown(page, field):
    return page.find(field).locator("textarea, input").first.input_value()


def ask_about(page, name):
    """Chooses a generator in the first row, and waits for the questions about it."""
    page.choose("network_1", name)
    page.find("condition_generator").wait_for(state="visible")


def test_pasted_conditions_stay_those_of_their_rows(page):
    paste(page, TWO)
    tags_are(page, TWO)
    page.find("which").wait_for(state="visible")
    time.sleep(2)  # whatever would still be said
    tags_are(page, TWO)
    for row, text in ((2, "fog"), (1, "ink"), (2, "fog")):
        page.choose("which", f"Hypernetwork {row}")
        page.wait_for(f"find('text_generator').querySelector('textarea, input').value === '{text}'", timeout=10_000)
    tags_are(page, TWO)
    paste(page, "<hypernet:any:text=sea:text2=sand:blend=0.25> <hypernet:other>")
    tags_are(page, "<hypernet:any:text=sea:text2=sand:blend=0.25> <hypernet:other>")
    page.choose("which", "Hypernetwork 2")
    page.choose("which", "Hypernetwork 1")
    page.find("text_generator_second").wait_for(state="visible")
    assert (shown(page, "text_generator"), shown(page, "text_generator_second"), shown(page, "blend_generator")) == ("sea", "sand", "0.25")


def test_looking_at_another_row_says_nothing(page):
    ask_about(page, "any")
    answer(page, "ink")
    page.choose("network_2", "other")
    page.find("which").wait_for(state="visible")
    answer(page, "fog")
    tags_are(page, "<hypernet:any:text=ink> <hypernet:other:text=fog>")
    kind(page, "A reference picture")
    page.wait_for("find('reference_generator')?.offsetParent")
    tags_are(page, "")  # a picture is still to be given
    page.choose("which", "Hypernetwork 1")
    page.find("text_generator").wait_for(state="visible")
    assert shown(page, "text_generator") == "ink"
    page.choose("which", "Hypernetwork 2")
    page.wait_for("find('reference_generator')?.offsetParent")
    answer(page, "fog")
    tags_are(page, "<hypernet:any:text=ink> <hypernet:other:text=fog>")


def test_what_is_answered_while_the_server_is_asked_stays(page):
    ask_about(page, "any")
    SlowCatalog.delays = {"other": 2}
    page.choose("network_1", "other")
    answer(page, "fog")
    time.sleep(4 if compatibility.MAJOR >= 4 else 7)
    tags_are(page, "<hypernet:other:text=fog>")
    assert shown(page, "text_generator") == "fog" and page.find("text_generator").is_visible()


def test_a_late_answer_does_not_move_the_questions_under_the_user(page):
    ask_about(page, "any")
    SlowCatalog.delays = {"other": 2}
    page.choose("network_2", "other")
    answer(page, "ink")
    page.find("which").wait_for(state="visible")
    time.sleep(1)
    assert shown(page, "which") == "Hypernetwork 1"
    tags_are(page, "<hypernet:any:text=ink> <hypernet:other>")


def test_the_questions_know_what_each_generator_can_be_asked_for(page):
    ask_about(page, "any")
    kind(page, "A task")
    tags_are(page, "<hypernet:any:task=day>")
    page.choose("network_2", "other")
    page.find("which").wait_for(state="visible")
    page.wait_for("!find('condition_generator').textContent.includes('A task')", timeout=10_000)
    page.choose("which", "Hypernetwork 1")
    page.find("task_generator").wait_for(state="visible")
    page.choose("network_1", "birds")
    page.find("which").wait_for(state="hidden")
    tags_are(page, "<hypernet:birds> <hypernet:other>")
    page.choose("network_2", "birds")
    page.find("condition_generator").wait_for(state="hidden")
