"""The library's box for a generator as its user sees it: a picture is dropped in and becomes a LoRA file, as it is and refined.

Run with `pytest -m browser tests/test_browser_export.py`.
"""
import re
import shutil

import pytest
from browsing import PICTURES, Page
from models import generator

from hypernetworks.generator_files import save_generator
from hypernetworks.hosts.diffusers import DiffusersHost

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(browser, address, home):
    save_generator(generator(DiffusersHost(None, device="cpu").unet), home / "networks" / "maker.safetensors")
    shutil.copytree(PICTURES, home / "data" / "pictures" / "striped")
    opened = Page(browser, address)
    opened.show_tab("Library")
    opened.wait_for("find('library_table').querySelectorAll('tbody tr').length === 1")
    opened.find("library_table").locator("tr[data-hypernetwork='maker'] button").click()
    opened.wait_for("find('library_export')?.offsetParent")
    return opened


def files(home):
    return sorted(path.name for path in (home / "loras").glob("*"))


def test_a_picture_that_is_dropped_in_becomes_a_file(page, home):
    page.find("library_condition_export").get_by_text("A reference picture").click()
    page.wait_for("find('library_dropped_export')?.offsetParent")
    page.tab.set_input_files("#hypernetworks_library_dropped_export input[type=file]", PICTURES / "01.png")
    page.wait_for("find('library_shown_export').querySelector('img')")
    page.fill("library_export_name", "fox")
    page.click("library_export")
    page.wait_for("find('library_export_result').textContent.includes('is ready')")
    (file,) = files(home)
    assert file.startswith("fox-") and str(home / "loras" / file) in page.find("library_export_result").inner_text()


def test_it_is_refined_on_pictures_that_are_there(page, home):
    page.unfold("library_refining")
    field = page.find("library_refine_dataset").locator("input").first
    field.fill("striped")
    field.press("Enter")
    field.press("Tab")
    page.fill("library_refine_steps", 3)
    page.click("library_refine")
    page.wait_for("find('library_export_result').textContent.includes('fox refined')")
    assert any(file.startswith("fox refined-") for file in files(home))


def test_what_is_wrong_is_one_sentence(page):
    page.fill("library_export_name", "a/b")
    page.click("library_export")
    page.wait_for("find('library_export_result').querySelector('[role=alert]')")
    assert "contains /" in page.find("library_export_result").inner_text()


@pytest.mark.parametrize("width", [1400, 800])
def test_nothing_sticks_out_to_the_side(page, width):
    page.tab.set_viewport_size({"width": width, "height": 1000})
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= width


def test_nothing_went_wrong_in_the_page(page, home):
    assert page.errors == [] and page.elsewhere == []
    assert not re.search("Traceback|ERROR", (home / "log.txt").read_text())
