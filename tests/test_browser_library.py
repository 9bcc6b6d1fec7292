"""The library as its user sees it: a real browser looks at networks, and renames, annotates, converts, merges and deletes them.

Run with `pytest -m browser tests/test_browser_library.py`. Nothing is trained and nothing drawn.
"""
import json
import re
import time

import pytest
from browsing import Page

from hypernetworks.checkpoint import Row, RunFolder
from hypernetworks.files import describe, load, save
from hypernetworks.residual import ResidualHypernetwork, ResidualStructure

pytestmark = pytest.mark.browser
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"


def put(networks, name, widths, seed=1, **metadata):
    network = ResidualHypernetwork(widths, ResidualStructure((1, 0.5, 1)), "Normal", seed)
    network.step = 300
    network.metadata.update(base_model="small", **metadata)
    return save(network, networks / f"{name}.safetensors")


@pytest.fixture(scope="module")
def page(browser, address, home):
    put(home / "networks", "ink", {8: 8}, 1)
    put(home / "networks", "fog", {8: 8}, 2)
    put(home / "networks", "layers", {LAYER: 8}, settings=json.dumps({"max_steps": 300, "learning_rate": "auto*0.5", "batch_size": 3}))
    (home / "networks" / "broken.safetensors").write_bytes(b"half a file")
    run = RunFolder(home / "data" / "runs", "layers")
    run.begin({"options": {"dataset": str(home / "my pictures")}}, 0)
    run.state_path.touch()
    for step in range(1, 61):
        run.add_row(Row(step, 1 / step, None, 1e-3))
    opened = Page(browser, address)
    opened.show_tab("Library")
    return opened


def rows(page):
    return {row.get_attribute("data-hypernetwork") for row in page.find("library_table").locator("tbody tr").all()}


def open_row(page, name):
    page.find("library_table").locator(f"tr[data-hypernetwork='{name}'] button").click()
    page.wait_for(f"""find('library_details')?.querySelector('[data-opened="{name}"]')""")


def told(page, words):
    page.wait_for(f"find('library_note').textContent.includes('{words}')")


def test_coming_into_sight_the_tab_lists_what_there_is(page):
    page.wait_for("find('library_table').querySelectorAll('tbody tr').length === 4")
    assert rows(page) == {"ink", "fog", "layers", "broken"}
    assert "is damaged" in page.find("library_table").locator("[data-hypernetwork='broken']").inner_text()
    assert "per layer" in page.find("library_table").locator("[data-hypernetwork='layers']").inner_text()


def test_a_search_leaves_what_matches(page):
    page.fill("library_search", "PER Layer")
    page.wait_for("find('library_table').querySelectorAll('tbody tr').length === 1")
    assert rows(page) == {"layers"}
    page.fill("library_search", "")
    page.wait_for("find('library_table').querySelectorAll('tbody tr').length === 4")


def test_a_click_opens_details_with_the_loss_curve(page):
    open_row(page, "layers")
    assert len(page.find("library_details").locator("polyline.hypernetworks-loss").get_attribute("points").split()) == 60
    assert "<hypernet:layers>" in page.find("library_details").inner_text()
    assert page.find("library_table").locator("[aria-selected=true]").get_attribute("data-hypernetwork") == "layers"
    assert page.find("library_convert").is_disabled()


def test_a_damaged_file_is_opened_with_its_sentence(page):
    open_row(page, "broken")
    assert "is damaged" in page.find("library_details").inner_text() and page.find("library_resume").is_disabled()


def test_notes_are_written_and_stay(page, home):
    open_row(page, "ink")
    page.fill("library_notes", "good at 0.7")
    page.click("library_save_notes")
    told(page, "The notes are saved")
    assert describe(home / "networks" / "ink.safetensors").description == "good at 0.7"
    open_row(page, "fog")
    assert page.find("library_notes").locator("textarea").input_value() == ""
    open_row(page, "ink")
    assert page.find("library_notes").locator("textarea").input_value() == "good at 0.7"


def test_a_network_is_renamed_and_a_taken_name_refused(page, home):
    page.fill("library_new_name", "fog")
    page.click("library_rename")
    told(page, "There is a hypernetwork named fog already")
    page.fill("library_new_name", "black ink")
    page.click("library_rename")
    told(page, "ink is called black ink now")
    assert rows(page) == {"black ink", "fog", "layers", "broken"}
    assert page.find("library_details").locator("[data-opened='black ink']").count() == 1
    assert (home / "networks" / "black ink.safetensors").is_file() and not (home / "networks" / "ink.safetensors").exists()


def test_a_network_is_converted(page, home):
    page.click("library_convert")
    told(page, "black ink.pt is beside it now")
    weights, same = (load(home / "networks" / f"black ink{suffix}").state_dict() for suffix in (".safetensors", ".pt"))
    assert all(weights[name].equal(same[name]) for name in weights)


def test_two_networks_are_merged(page, home):
    page.click("library_add")
    told(page, "black ink is among those to be merged")
    open_row(page, "fog")
    page.click("library_add")
    told(page, "fog is among those to be merged")
    page.unfold("library_merging")
    page.fill("library_weight_2", 3)
    page.fill("library_merged_name", "mist")
    page.click("library_merge")
    told(page, "mist is made of black ink, fog")
    page.wait_for("find('library_note').getBoundingClientRect().top >= 0")  # though the button is far below it
    parts = json.loads(describe(home / "networks" / "mist.safetensors").metadata["merged_from"])
    assert [(part["name"], part["weight"]) for part in parts] == [("black ink", 1), ("fog", 3)]
    assert "average of black ink (1), fog (3)" in page.find("library_details").inner_text()


def test_the_generate_tab_offers_what_is_new(page):
    page.show_tab("Generate")
    page.choose("network_1", "mist")
    page.wait_for("find('tags').querySelector('textarea, input').value === '<hypernet:mist>'")
    page.show_tab("Library")


def delete(page, confirm):
    page.tab.once("dialog", lambda dialog: dialog.accept() if confirm else dialog.dismiss())
    with page.tab.expect_event("dialog"):
        page.click("library_delete")


def test_delete_asks_and_moves_to_the_trash(page, home):
    open_row(page, "mist")
    delete(page, confirm=False)
    time.sleep(2)
    assert (home / "networks" / "mist.safetensors").is_file()
    delete(page, confirm=True)
    told(page, "mist is in the trash")
    page.wait_for("find('network_1').querySelector('input').value === 'None'")
    assert rows(page) == {"black ink", "fog", "layers", "broken"} and page.find("library_panel").is_hidden()
    assert [path.name for path in (home / "data" / "trash").glob("* mist/*")] == ["mist.safetensors"]


def test_training_goes_on_with_the_files_options(page, home):
    open_row(page, "layers")
    page.click("library_resume")
    page.wait_for("find('note').textContent.includes('These are the options of layers')")
    assert page.find("train").is_visible()
    for group in ("network", "training"):
        page.unfold(f"group_{group}")
    shown = {name: page.find(f"option_{name}").locator("input, textarea").first.input_value() for name in (
        "name", "dataset", "learning_rate", "batch_size", "max_steps", "layer_structure"
    )}  # fmt: skip
    assert shown == {
        "name": "layers", "dataset": str(home / "my pictures"), "learning_rate": "auto*0.5", "batch_size": "3", "max_steps": "600",
        "layer_structure": "1, 0.5, 1",
    }  # fmt: skip


def test_nothing_went_wrong_in_the_page(page, home):
    assert page.errors == [] and page.elsewhere == []
    assert not re.search("Traceback|ERROR", (home / "log.txt").read_text())


@pytest.mark.parametrize("width", [1400, 800])
def test_nothing_sticks_out_to_the_side(page, browser, address, width):
    narrow = Page(browser, address, width)
    narrow.show_tab("Library")
    narrow.wait_for("find('library_table').querySelectorAll('tbody tr').length === 4")
    open_row(narrow, "layers")
    assert narrow.tab.evaluate("document.documentElement.scrollWidth") <= width
