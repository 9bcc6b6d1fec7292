"""What the extension puts into a web UI's own lists: settings, cards, tabs; and the folders that they show."""
import ast
import base64
import io
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="a web UI is made of it")

import web_ui
from web_ui.shelf import OIL, fill, network

from hypernetworks.files import preview_text, save


@pytest.fixture(params=["a1111", "forge"])
def ui(request, tmp_path):
    with web_ui.started(request.param, tmp_path) as ui:
        fill(ui)
        yield ui


def cards(ui):
    (page,) = [page for page in ui.part("ui_extra_networks").extra_pages if page.name == "hypernetworks"]
    return page


def card(ui, name):
    cards(ui).refresh()
    return next(item for item in cards(ui).list_items() if item["name"] == name)


@pytest.mark.skipif(shutil.which("node") is None, reason="runs the page's script")
@pytest.mark.parametrize("prompt, after", [
    ("", "<hypernet:ink:1>"), ("a <hypernet:ink2:1>", "a <hypernet:ink2:1> <hypernet:ink:1>"), ("a <hypernet:ink:0.5>", "a <hypernet:ink:0.5>"),
    ("<hypernet:ink>", "<hypernet:ink>"),
])  # fmt: skip
def test_try_it_adds_the_tag_unless_it_is_there(prompt, after):
    source = (Path(web_ui.ROOT).parents[1] / "hypernetworks" / "hosts" / "parts.py").read_text(encoding="utf-8")
    (script,) = [ast.literal_eval(node.value) for node in ast.parse(source).body if isinstance(node, ast.Assign) and node.targets[0].id == "TRY_SCRIPT"]
    page = f"const box = {{value: {json.dumps(prompt)}}}, gradioApp = () => ({{querySelector: () => box}}), updateInput = () => 0, switch_to_txt2img = () => 0;"
    told = subprocess.run(["node", "-e", f"{page}({script})('ink'); console.log(box.value)"], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == after


def test_there_is_one_page_of_cards_beside_the_web_uis_others(ui):
    names = ui.part("ui_extra_networks")
    assert [page.name for page in names.extra_pages] == ["lora", "hypernetworks"] and type(cards(ui)) is not names.OwnPage
    assert [item["name"] for item in cards(ui).list_items()] == ["all", "foreign", "ink", "oil", "xl"]


def test_a_card_puts_the_tag_with_the_default_strength_into_the_prompt(ui):
    item = card(ui, "oil")
    assert item["prompt"] == '"<hypernet:oil:" + opts.extra_networks_default_multiplier + ">"'
    assert item["filename"] == str(ui.networks / "oil.safetensors") and item["search_terms"] == ["hypernetworks/oil.safetensors"]
    assert item["local_preview"] == str(ui.networks / "oil.preview.png")
    assert item["sort_keys"]["name"] == "oil.safetensors" and item["sort_keys"]["default"] == 3


def test_a_name_is_quoted_for_javascript(ui):
    name = "o'il \\ \u2028 ü"
    (ui.networks / "oil.safetensors").rename(ui.networks / f"{name}.safetensors")
    first, plus, last = card(ui, name)["prompt"].partition(" + opts.extra_networks_default_multiplier + ")
    assert json.loads(first) == f"<hypernet:{name}:" and plus and json.loads(last) == ">" and first.isascii()


def test_a_card_shows_the_picture_beside_the_file_or_else_the_one_in_it(ui):
    assert card(ui, "oil")["preview"] is None
    one = network("pictured")
    one.metadata["preview"] = preview_text(Image.new("RGB", (32, 32), "red"))
    save(one, ui.networks / "pictured.safetensors")
    kind, _, data = card(ui, "pictured")["preview"].partition(",")
    assert kind == "data:image/jpeg;base64" and Image.open(io.BytesIO(base64.b64decode(data))).size == (32, 32)
    Image.new("RGB", (8, 8)).save(ui.networks / "pictured.preview.png")
    assert card(ui, "pictured")["preview"].startswith("./sd_extra_networks/thumb?filename=")


def test_a_card_tells_what_the_file_and_a_text_beside_it_say(ui):
    one = network("told")
    one.description, one.step = "blue stripes", 120
    one.metadata.update(base_model="base", preview="x")
    save(one, ui.networks / "told.safetensors")
    item = card(ui, "told")
    assert item["description"] == "blue stripes" and item["metadata"]["steps"] == "120" and item["metadata"]["base_model"] == "base"
    assert "preview" not in item["metadata"] and item["preview"] is None  # "x" is no picture
    json.dumps(item["metadata"])
    (ui.networks / "told.txt").write_text("my own words")
    assert card(ui, "told")["description"] == "my own words"


def test_a_pt_is_listed_without_being_loaded_and_a_file_that_is_none_as_well(ui):
    save(OIL, ui.networks / "old.pt")
    (ui.networks / "broken.safetensors").write_bytes(b"nothing of the kind")
    for name in ("old", "broken"):
        item = card(ui, name)
        assert (item["metadata"], item["description"], item["preview"]) == (None, None, None)


def test_a_file_that_is_new_shows_up_and_one_that_has_gone_does_not(ui):
    (ui.networks / "below").mkdir()
    save(network("new"), ui.networks / "below" / "new.safetensors")
    assert card(ui, "new")["filename"].endswith("below/new.safetensors")
    (ui.networks / "oil.safetensors").unlink()
    cards(ui).refresh()
    assert cards(ui).create_item("oil") is None and cards(ui).create_item("nobody", enable_filter=False) is None


def test_pictures_may_be_fetched_from_the_folder(ui):
    assert str(ui.networks.resolve()) in ui.part("ui_extra_networks").allowed_dirs


def test_the_settings_have_a_section_of_their_own(ui):
    ui.open_page()
    ours = {name: option for name, option in ui.opts.data_labels.items() if name.startswith("hypernetworks_")}
    assert set(ours) == {"hypernetworks_panel_open", "hypernetworks_data_folder", "hypernetworks_client_paths", "hypernetworks_layer_by_layer"}
    for option in ours.values():
        assert option.section == ("hypernetworks", "Hypernetworks") and option.label
    assert [ours[name].default for name in sorted(ours)] == [False, "", ui.kind == "a1111", False]
    assert "Reload UI" in ours["hypernetworks_panel_open"].comment_after and "restart" in ours["hypernetworks_data_folder"].comment_after


@pytest.mark.parametrize("open_it", [False, True])
def test_the_panel_is_unfolded_where_the_settings_say_so(ui, open_it):
    ui.open_page()
    ui.opts.hypernetworks_panel_open = open_it
    page = ui.open_page()
    panels = [block for block in page.blocks.values() if str(getattr(block, "elem_id", "")).endswith("_hypernetworks_panel")]
    assert [panel.open for panel in panels] == [open_it] * 2
    assert {panel.elem_id for panel in panels} == {"txt2img_hypernetworks_panel", "img2img_hypernetworks_panel"}


def test_ids_of_the_page_are_stable_and_each_is_there_once(ui):
    page = ui.open_page()
    ids = [block.elem_id for block in page.blocks.values() if getattr(block, "elem_id", None)]
    assert len(ids) == len(set(ids))
    for prefix in ("txt2img", "img2img"):
        assert {f"{prefix}_hypernetworks_{name}" for name in ("network_1", "strength_4", "start_1", "end_1", "passes", "tags", "refresh")} <= set(ids)


def test_hires_fix_is_offered_in_txt2img_only(ui):
    page = ui.open_page()
    seen = {block.elem_id: block.visible for block in page.blocks.values() if str(getattr(block, "elem_id", "")).endswith("_hypernetworks_passes")}
    assert seen == {"txt2img_hypernetworks_passes": True, "img2img_hypernetworks_passes": False}


def rendered(tabs):
    """Tabs in a page, as modules/ui.py puts them there: {title: (what renders, ids within)}."""
    import gradio

    found = {}
    with gradio.Blocks() as page, gradio.Tabs():
        for content, title, name in tabs:
            before = set(page.blocks)
            with gradio.Tab(title, elem_id=name):
                content.render()
            found[title] = content, {page.blocks[number].elem_id for number in set(page.blocks) - before} - {None}
    return found


def test_the_tabs_are_built_in_the_web_uis_page_without_a_model(ui):
    found = rendered(ui.part("script_callbacks").ui_tabs_callback())
    assert list(found) == ["Train Hypernetwork", "Hypernetworks"]
    assert {"hypernetworks_train_tab", "hypernetworks_train", "hypernetworks_preset"} <= found["Train Hypernetwork"][1]
    assert {"hypernetworks_library_tab", "hypernetworks_library_table"} <= found["Hypernetworks"][1]
    assert all(content.children for content, _ in found.values())  # where the web UI looks for values to save
    assert ui.loaded == []


def test_the_web_ui_keeps_no_value_of_the_tabs(ui):
    """Or today's defaults would stay for good, and a preset without the options that it sets (modules/ui_loadsave.py, add_block)."""
    import gradio

    def parts(block):
        return [below for child in block.children for below in parts(child)] if hasattr(block, "children") else [block]

    kept = (gradio.Slider, gradio.Radio, gradio.Checkbox, gradio.Textbox, gradio.Number, gradio.Dropdown)
    for content, _ in rendered(ui.part("script_callbacks").ui_tabs_callback()).values():
        found = [part for part in parts(content) if isinstance(part, kept)]
        assert found
        assert [part.label for part in found if part.label is not None and not getattr(part, "do_not_save_to_config", False)] == []


def test_a_tab_that_cannot_be_built_says_so_in_its_place(ui):
    def broken():
        raise OSError("the disk is gone")

    tabs = ui.extension.tabs()
    tabs[0][0].build = broken
    found = rendered(tabs)
    (shown,) = found["Train Hypernetwork"][0].children
    assert "could not be built (the disk is gone)" in shown.value
    assert "hypernetworks_library_table" in found["Hypernetworks"][1]
    assert [error.splitlines()[0] for error in ui.errors] == ["A tab of the hypernetworks extension could not be built."]
    ui.errors.clear()


def test_files_live_in_the_web_uis_folders(ui):
    folders = ui.host.folders
    assert folders.networks == ui.networks.resolve() and folders.data == (ui.folder / "hypernetworks").resolve()
    ui.opts.hypernetworks_data_folder = f" {ui.folder / 'elsewhere'} "
    assert ui.host.folders.data == (ui.folder / "elsewhere").resolve()


def test_the_folder_on_the_command_line_counts(tmp_path):
    with web_ui.started("a1111", tmp_path, hypernetwork_dir=str(tmp_path / "nets")) as ui:
        assert ui.host.folders.networks == (tmp_path / "nets").resolve()
        (tmp_path / "nets").mkdir()
        save(OIL, tmp_path / "nets" / "oil.safetensors")
        assert [item["name"] for item in cards(ui).list_items()] == ["oil"]


@pytest.mark.parametrize("flags, may", [
    ({}, True), ({"server_name": "127.0.0.1"}, True), ({"server_name": "localhost"}, True), ({"server_name": "0.0.0.0"}, False),
    ({"server_name": "192.168.0.5"}, False), ({"listen": True}, False), ({"share": True}, False), ({"ngrok": "token"}, False),
], ids=str)  # fmt: skip
def test_who_may_name_folders_of_this_machine(tmp_path, flags, may):
    with web_ui.started("a1111", tmp_path, **flags) as ui:
        assert ui.host.client_paths is may
        ui.opts.hypernetworks_client_paths = True
        assert ui.host.client_paths is True
