"""The standalone app as its user sees it: a real browser clicks through checking, training, coming back and generating.

Run with `pytest -m browser`. It takes the embedded model and two to three minutes on two slow cores.
"""
import re
import shutil
import time
from pathlib import Path

import numpy
import pytest
import torch
from browsing import PICTURES, Page

from hypernetworks.generator import Hypernetwork
from hypernetworks.generator_files import save_generator
from hypernetworks.hosts.diffusers import DiffusersHost
from hypernetworks.prompt import ActiveNetwork, ConditionSource, tag

pytestmark = pytest.mark.browser
NAME = "striped in a hurry"


@pytest.fixture(scope="module")
def page(browser, address):
    return Page(browser, address)


@pytest.fixture(scope="module")
def folder(home):
    """The bundled pictures, to be edited."""
    return Path(shutil.copytree(PICTURES, home / "my pictures"))


def test_the_check_shows_the_pictures_and_keeps_an_edited_caption(page, folder):
    page.fill("option_dataset", folder)
    page.click("check")
    page.wait_for("find('report').querySelectorAll('figure').length === 16")
    captions = page.find("report").locator("textarea")
    assert captions.first.input_value() == (folder / "01.txt").read_text().strip()
    captions.first.fill("a caption of my own")
    page.wait_for("find('report').querySelector('textarea').classList.contains('hypernetworks-edited')")
    page.click("save_captions")
    page.wait_for("find('report').textContent.includes('1 caption saved.')")
    assert (folder / "01.txt").read_text().strip() == "a caption of my own"


def test_a_wrong_folder_is_told_in_words(page, folder):
    page.fill("option_dataset", folder / "nothing here")
    page.click("check")
    page.wait_for("find('report').textContent.includes('There is no folder')")
    page.fill("option_dataset", folder)


def test_pictures_can_be_dropped_in(page, home, folder):
    page.find("dropped").locator("input[type=file]").set_input_files([str(folder / name) for name in ("02.png", "02.txt", "03.png")])
    page.wait_for("find('report').querySelectorAll('figure').length === 2")
    kept = home / "data" / "pictures" / "pictures"
    assert page.find("option_dataset").locator("textarea, input").first.input_value() == str(kept)
    assert sorted(path.name for path in kept.iterdir()) == ["02.png", "02.txt", "03.png"]
    page.fill("option_dataset", folder)


def test_training_moves_bar_and_chart_and_survives_a_reload(page, home):
    page.fill("option_name", NAME)
    page.fill("option_max_steps", 30)
    page.fill("option_batch_size", 32)  # slow enough to be watched
    page.unfold("group_watching")
    page.fill("option_preview_every", 30)
    page.fill("option_preview_prompts", "a large red star on a blue background")
    page.unfold("option_more_watching")
    page.fill("option_preview_steps", 4)
    page.fill("option_validation_every", 15)
    page.click("train")
    page.wait_for("find('status').querySelectorAll('polyline.hypernetworks-loss').length > 0")
    percent, points = page.percent(), page.chart_points()
    assert page.state() == "running" and 0 < percent < 100
    page.wait_for(f"Number(find('status').querySelector('[role=progressbar]').getAttribute('aria-valuenow')) > {percent}")
    assert page.chart_points() > points

    page.open()
    page.wait_for(f"find('status').textContent.includes('{NAME}')")
    assert page.percent() > percent and page.state() in ("running", "finished")
    page.wait_for("find('status').querySelector('[data-state]').dataset.state !== 'running'")
    assert page.state() == "finished" and page.percent() == 100 and page.chart_points() == 30
    assert (home / "networks" / f"{NAME}.safetensors").is_file()
    page.wait_for("find('previews').querySelectorAll('img').length === 3")  # of steps 0 and 30, and the sheet of both


def test_the_card_tells_of_the_file_and_try_it_leads_to_generating(page, home):
    assert str(home / "networks" / f"{NAME}.safetensors") in page.find("card").inner_text()
    assert f"{NAME}.safetensors" in page.find("downloads").inner_text().replace("\n", "")
    page.click("try")
    page.find("prompt").wait_for(state="visible")
    assert page.find("prompt").locator("textarea").input_value() == "a large red star on a blue background"
    page.wait_for(f"find('network_1').querySelector('input').value === '{NAME}'")
    page.wait_for(f"find('tags').querySelector('textarea, input').value === '<hypernet:{NAME}>'")


def test_the_new_file_changes_the_picture_at_strength_1_and_not_at_strength_0(page, browser, address):
    fresh = Page(browser, address)  # as the next day: nothing is selected but what one picks
    fresh.show_tab("Generate")
    fresh.find("prompt").wait_for(state="visible")
    fresh.fill("prompt", "a large red star on a blue background")
    fresh.click("refresh")
    fresh.choose("network_1", NAME)
    fresh.wait_for(f"find('network_1').querySelector('input').value === '{NAME}'")
    fresh.fill("steps", 6)
    fresh.fill("seed", 7)
    differences = {}
    for strength in (0, 1):
        before = fresh.source("picture")
        fresh.fill("strength_1", strength)
        fresh.wait_for(f"find('tags').querySelector('textarea, input').value === '<hypernet:{NAME}{'' if strength else ':0'}>'")
        fresh.click("generate")
        fresh.wait_for(f"(find('picture').querySelector('img')?.src ?? '') !== '{before}' && find('plain_picture').querySelector('img')")
        fresh.find("generate").wait_for(state="visible")
        time.sleep(1)
        with_it, without = fresh.pixels("picture"), fresh.pixels("plain_picture")
        assert with_it.shape == without.shape == (128, 128, 3)
        differences[strength] = int(numpy.abs(with_it.astype(int) - without).max())
    assert differences[0] == 0
    assert differences[1] > 16
    assert fresh.errors == []


def test_what_one_chose_stays_when_the_page_learns_late_of_a_finished_run(browser, address, home):
    shutil.copy(home / "networks" / f"{NAME}.safetensors", home / "networks" / "mine.safetensors")
    fresh = Page(browser, address, before="Object.defineProperty(document, 'hidden', {value: true, configurable: true})")  # it does not look for runs
    fresh.show_tab("Generate")
    fresh.click("refresh")
    fresh.choose("network_1", "mine")
    fresh.wait_for("find('tags').querySelector('textarea, input').value === '<hypernet:mine>'")
    assert fresh.state() == "unknown"
    fresh.tab.evaluate("Object.defineProperty(document, 'hidden', {value: false})")
    fresh.wait_for(f"find('trained_name').querySelector('textarea, input').value === '{NAME}'")
    time.sleep(2)
    assert fresh.find("network_1").locator("input").first.input_value() == "mine"
    fresh.tab.close()


def test_a_generator_asks_what_its_weights_are_for_and_follows_the_picture_dropped_in(browser, address, home):
    made = Hypernetwork(embedding_dim=32, hidden_dim=48, basis_size=4).bind(DiffusersHost().unet)
    for parameter in made.decoder.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    save_generator(made, home / "networks" / "any.safetensors")
    fresh = Page(browser, address)
    fresh.show_tab("Generate")
    fresh.find("prompt").wait_for(state="visible")
    assert not fresh.find("conditions_generator").count() or not fresh.find("conditions_generator").is_visible()
    fresh.click("refresh")
    fresh.choose("network_1", "any")
    fresh.find("condition_generator").wait_for(state="visible")
    fresh.find("condition_generator").locator("label").filter(has_text="A reference picture").first.click()
    fresh.find("dropped_generator").locator("input[type=file]").set_input_files(str(PICTURES / "01.png"))
    fresh.wait_for("find('shown_generator').querySelector('img')")
    digits = fresh.find("shown_generator").locator("code").inner_text()
    fresh.wait_for(f"find('tags').querySelector('textarea, input').value === '<hypernet:any:ref={digits}>'")
    assert (home / "data" / "references" / f"{digits}.png").is_file()
    fresh.find("more_networks").get_by_text("More at once").click()
    fresh.choose("network_3", "any")
    fresh.find("which").wait_for(state="visible")
    fresh.find("condition_generator").locator("label").filter(has_text="A text").first.click()
    fresh.fill("text_generator", " ink: 50% <wet> #1, schön ")
    asked = tag(ActiveNetwork("any", condition=ConditionSource("text", " ink: 50% <wet> #1, schön ")))
    fresh.wait_for(f"find('tags').querySelector('textarea, input').value === '<hypernet:any:ref={digits}> {asked}'")
    fresh.choose("which", "Hypernetwork 1")
    fresh.wait_for("find('shown_generator').querySelector('img')")
    fresh.fill("prompt", "a large red star on a blue background")
    fresh.fill("steps", 4)
    fresh.click("generate")
    fresh.wait_for("find('picture').querySelector('img') && find('plain_picture').querySelector('img')")
    assert numpy.abs(fresh.pixels("picture").astype(int) - fresh.pixels("plain_picture")).max() > 16
    assert fresh.errors == []


def test_an_existing_name_is_asked_about(page, folder):
    page.show_tab("Train Hypernetwork")
    page.fill("option_dataset", folder)
    page.fill("option_name", NAME)
    page.click("train")
    page.wait_for("find('note').textContent.includes('exists already')")
    assert page.find("replace").is_visible() and page.find("continue").is_visible()
    page.click("keep")
    page.find("replace").wait_for(state="hidden")
    assert page.state() == "finished"


def test_nothing_went_wrong_in_the_page_and_nothing_was_asked_of_the_internet(page, home):
    assert page.errors == []
    assert page.elsewhere == []
    assert not re.search("Traceback|ERROR", (home / "log.txt").read_text())


@pytest.mark.parametrize("width", [1400, 800])
def test_nothing_sticks_out_to_the_side(browser, address, width):
    narrow = Page(browser, address, width)
    for title in ("Train Hypernetwork", "Generate"):
        narrow.show_tab(title)
        time.sleep(0.5)
        assert narrow.tab.evaluate("document.documentElement.scrollWidth") <= width
