"""Presets of one's own, the queue and the comparison as their user sees them, with two browsers on the same app.

Run with `pytest -m browser tests/test_browser_runs.py`.
"""
import re

import pytest
from browsing import PICTURES, Page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(browser, address):
    opened = Page(browser, address)
    opened.fill("option_dataset", PICTURES)
    opened.unfold("group_pictures")
    opened.fill("option_resolution", 64)
    opened.unfold("group_watching")
    opened.fill("option_preview_every", 10_000)  # at the beginning and at the end
    opened.fill("option_preview_prompts", "a large red star on a blue background --s 2 --ss Euler")
    return opened


@pytest.fixture(scope="module")
def other(browser, address):
    return Page(browser, address, width=800)


def rows(page):
    return page.find("queue").locator("tbody tr")


def press(page, text, name):
    """A button of the row of a run."""
    rows(page).filter(has_text=name).get_by_role("button", name=text).click()


def sees_what(other, page, name):
    """Waits until a browser has the row of a run as the page has it: until then its buttons are those of what was there before."""
    number = rows(page).filter(has_text=name).locator("[data-queue^=remove]").get_attribute("data-queue")
    other.find("queue").locator(f"[data-queue='{number}']").wait_for()


def choose(page, name, text):
    field = page.find(name).locator("input").first
    field.fill(text)
    field.press("Enter")
    field.press("Tab")


def test_a_preset_of_ones_own_is_saved_and_another_browser_has_it(page, other):
    page.fill("option_max_steps", 3)
    page.unfold("own_presets")
    page.fill("preset_name", "three steps")
    page.click("preset_save")
    page.wait_for("find('preset_help').textContent.includes('three steps is saved')")
    other.open()
    other.wait_for("find('status').querySelector('[data-state=idle]')")
    choose(other, "preset", "three steps")
    other.wait_for("find('option_max_steps').querySelector('input').value === '3'")


def test_runs_wait_for_their_turn_and_both_browsers_see_it(page, other):
    page.fill("option_name", "first")
    page.fill("option_max_steps", 5000)
    page.click("train")
    page.wait_for("find('status').querySelector('[data-state=running]')")
    page.fill("option_max_steps", 2)
    for name in ("second", "third"):
        page.fill("option_name", name)
        page.click("add_to_queue")
        page.wait_for(f"find('queue').textContent.includes('{name}')")
    other.wait_for("find('queue').textContent.includes('2 runs wait')")
    press(other, "third earlier", "third")
    page.wait_for("find('queue').querySelector('tbody tr').textContent.includes('third')")
    press(page, "Edit", "second")
    page.wait_for("find('option_name').querySelector('textarea, input').value === 'second' && !find('queue').textContent.includes('second')")
    page.click("add_to_queue")
    page.wait_for("find('queue').textContent.includes('second')")
    sees_what(other, page, "second")
    press(other, "Remove", "second")
    page.wait_for("!find('queue').textContent.includes('second')")


def test_the_next_run_begins_when_one_is_stopped(page, home):
    page.wait_for("find('status').querySelectorAll('polyline.hypernetworks-loss').length > 0")
    page.click("stop")
    page.wait_for("find('status').textContent.includes('third')")
    page.wait_for("find('queue').querySelector('[data-ended=finished]')?.textContent.includes('third')")
    assert {path.stem for path in (home / "networks").glob("*.safetensors")} == {"first", "third"}
    assert (home / "data" / "runs" / "third" / "sheet.png").is_file()


def test_two_runs_are_compared(page):
    page.show_tab("Library")
    page.wait_for("find('library_table').querySelectorAll('tbody tr').length === 2")
    page.unfold("comparing")
    choose(page, "first_run", "first")
    choose(page, "second_run", "third")
    page.click("compare_runs")
    page.wait_for("find('comparison').querySelectorAll('img').length === 2 && find('comparison').querySelector('polyline.hypernetworks-first')")
    assert page.find("comparison").locator("table[data-differences] tbody tr").all_inner_texts() == ["Steps\t5000\t2"]


def test_nothing_went_wrong_and_nothing_sticks_out(page, other, home):
    assert page.errors == other.errors == [] and page.elsewhere == other.elsewhere == []
    assert not re.search("Traceback|ERROR", (home / "log.txt").read_text())
    for one, width in ((page, 1400), (other, 800)):
        assert one.tab.evaluate("document.documentElement.scrollWidth") <= width
