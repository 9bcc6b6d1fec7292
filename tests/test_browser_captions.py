"""Captions written by the host, as the page's user sees it: a real browser, and the embedded model's host with a describer of its own.

Run with `pytest -m browser`.
"""
import re
import shutil

import pytest
from browsing import PICTURES, Page, app_running

pytestmark = pytest.mark.browser
APP = """
import sys, time
from pathlib import Path

from hypernetworks.host import Folders
from hypernetworks.hosts.diffusers import DiffusersHost
from hypernetworks.ui.app import launch


def describe(picture):
    time.sleep(1)
    return f"a picture of {picture.width} pixels"


class DescribingHost(DiffusersHost):
    captioner = property(lambda self: describe)


launch(DescribingHost(None, Folders.below(Path(sys.argv[1]))), int(sys.argv[2]), open_browser=False)
"""


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with app_running(home, "-c", APP, home) as address:
        yield Page(browser, address)
    assert not re.search("Traceback|ERROR", (home / "log.txt").read_text())


@pytest.fixture
def folder(tmp_path):
    """Six pictures, the first with a caption."""
    for number in range(1, 7):
        shutil.copy(PICTURES / f"0{number}.png", tmp_path / f"0{number}.png")
    shutil.copy(PICTURES / "01.txt", tmp_path / "01.txt")
    return tmp_path


def test_captions_are_written_while_the_page_shows_how_far_and_can_be_stopped(page, folder):
    def written():
        return len(list(folder.glob("*.txt"))) - 1

    page.fill("option_dataset", folder)
    page.click("check")
    page.wait_for("find('write_captions')?.textContent.includes('Write captions for 5 pictures')")
    first = (folder / "01.txt").read_text()

    typed = page.find("report").locator("textarea").nth(1)
    typed.fill("typed by hand")
    page.click("write_captions")
    page.find("stop_captions").wait_for(state="visible")
    page.find("write_captions").wait_for(state="hidden")
    page.wait_for("find('report').parentElement.textContent.includes('Writing captions')")
    page.click("stop_captions")
    page.wait_for("find('report').textContent.includes('of 4 captions written.')")
    stopped_at = written()
    assert 2 <= stopped_at < 5  # the typed one, and at least the one that was at hand
    page.wait_for(f"find('write_captions')?.textContent.includes('Write captions for {5 - stopped_at} picture')")
    page.find("stop_captions").wait_for(state="hidden")

    page.click("write_captions")
    page.wait_for(f"find('report').textContent.includes('{5 - stopped_at} of {5 - stopped_at} caption')")
    page.find("write_captions").wait_for(state="hidden")
    captions = [field.input_value() for field in page.find("report").locator("textarea").all()]
    assert captions == [first.strip(), "typed by hand", *["a picture of 128 pixels"] * 4]
    assert (folder / "01.txt").read_text() == first and (folder / "02.txt").read_text().strip() == "typed by hand"

    page.find("report").locator("textarea").nth(2).fill("edited afterwards")
    page.click("save_captions")
    page.wait_for("find('report').textContent.includes('1 caption saved.')")
    assert (folder / "03.txt").read_text().strip() == "edited afterwards"
    assert page.errors == [] and page.elsewhere == []
