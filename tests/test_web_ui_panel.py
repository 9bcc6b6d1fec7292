"""The panel in a web UI's page: its infotext and back, and the axes of the XYZ plot, which change it."""
import hashlib
import json

import pytest
import torch

pytest.importorskip("gradio", reason="a web UI is made of it")

import web_ui
from hypothesis import given, settings
from hypothesis import strategies as st
from web_ui.recording import recorded
from web_ui.shelf import INK, OIL, fill, on

PASSES = ("both passes", "first pass only", "hires pass only")
EMPTY = ["None", 1.0, 0.0, 1.0]
PROMPT = ["", "", "", "", "Hypernetwork 1", "The prompt", "", "", "", "The prompt", "", "", "", 0.0]  # what each row's generator makes its weights for; the questions
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="<>:"), min_size=1, max_size=12)
NAMES = TEXT.map(str.strip).filter(lambda name: name and name != "None")
SHARES = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)
ROWS = st.lists(st.tuples(NAMES, st.floats(-2, 2), SHARES).map(lambda row: (row[0], row[1], *row[2])), max_size=4)


@pytest.fixture(scope="module", params=["a1111", "forge"])
def running(request, tmp_path_factory):
    with web_ui.started(request.param, tmp_path_factory.mktemp(request.param)) as ui:
        fill(ui)
        ui.choose("base")
        yield ui


@pytest.fixture
def ui(running):
    with running.one_test():
        yield running


def infotext(ui, rows=(), passes=None, prompt="a star", negative=""):
    """As a picture that was drawn with this panel has it."""
    p = ui.job(prompt, rows, passes)
    p.negative_prompts = [negative]
    return ui.part("processing").create_infotext(p, [prompt], [7])


def pasted(ui, text):
    """What the button below the prompt makes of our components."""
    return ui.part("infotext_utils").paste(text, ui.script.infotext_fields)


@given(rows=ROWS, passes=st.sampled_from(PASSES), prompt=st.sampled_from(["a star", 'a "star", red: blue', "a\nb"]))
@settings(max_examples=120, deadline=None)
def test_the_infotext_brings_the_panel_back_exactly(running, rows, passes, prompt):
    text = infotext(running, rows, passes, prompt, negative="no dogs")
    assert running.errors == []
    wanted = [value for row in rows for value in row] + EMPTY * (4 - len(rows)) + PROMPT
    assert pasted(running, text) == [*wanted, passes if rows else "both passes"]
    found = running.part("infotext_utils").parse_generation_parameters(text)
    assert found["Prompt"] == prompt and found["Negative prompt"] == "no dogs" and found["Steps"] == "4"


def test_a_panel_without_networks_writes_nothing(ui):
    assert "ypernetwork" not in infotext(ui, passes="hires pass only") and "Hypernetworks hires" not in infotext(ui, [("oil", 0.5)])


def test_img2img_has_one_pass_in_which_the_panel_acts(ui):
    with pytest.importorskip("gradio").Blocks():
        panels = {is_img2img: ui.extension.panel(is_img2img)[0] for is_img2img in (True, False)}
    values = ["ink", 0.5, 0.0, 1.0, *EMPTY * 3, "", "", "", "", "hires pass only"]
    assert panels[True].chosen(values)[1] == "both passes" and panels[False].chosen(values)[1] == "hires pass only"


def test_a_pass_that_there_is_not_is_told_below_the_picture(ui):
    said = "without hires fix there is none"
    assert said in ui.txt2img("a star", rows=[("ink", 0.5)], passes="hires pass only", steps=1).comments
    assert said not in ui.txt2img("a star", rows=[("ink", 0.5)], passes="hires pass only", enable_hr=True, steps=1).comments
    assert said not in ui.txt2img("a star", rows=[("ink", 0.5)], steps=1).comments


def test_a_time_without_a_step_is_told_below_the_picture(ui):
    assert "ink acts at no step" in ui.txt2img("a star", rows=[("ink", 0.5, 0.5, 0.5)], steps=1).comments
    assert "at no step" not in ui.txt2img("a star", rows=[("ink", 0.5, 1.0, 1.0)], steps=1).comments


def test_a_file_that_goes_after_the_list_was_made_is_told_and_the_others_act(ui):
    gone = ui.networks / "gone.safetensors"
    gone.write_bytes((ui.networks / "ink.safetensors").read_bytes())
    ui.extension.session.catalog.refresh()
    gone.unlink()
    result = ui.txt2img("a star<hypernet:gone>", rows=[("oil", 0.5)], steps=1)
    assert "'gone' is gone" in result.comments and "oil: " in result.infotexts[0]
    assert torch.equal(result.latents[0], ui.txt2img("a star", rows=[("oil", 0.5)], steps=1).latents[0])
    ui.extension.session.catalog.refresh()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_that_cannot_be_read_is_told_and_the_others_act(ui, suffix):
    odd = ui.networks / f"odd{suffix}"
    odd.touch()
    ui.extension.session.catalog.refresh()
    odd.unlink()
    odd.mkdir()  # what not even root can open as a file
    try:
        result = ui.txt2img("a star<hypernet:odd>", rows=[("oil", 0.5)], steps=1)
    finally:
        odd.rmdir()
        ui.extension.session.catalog.refresh()
    assert "odd" in result.comments and torch.equal(result.latents[0], ui.txt2img("a star", rows=[("oil", 0.5)], steps=1).latents[0])


def test_the_files_are_told_by_their_hashes(ui):
    result = ui.txt2img("a star<hypernet:oil:0.5><hypernet:gone>", rows=[("ink", 0.5)], steps=1)
    found = ui.part("infotext_utils").parse_generation_parameters(result.infotexts[0])
    files = {name: hashlib.sha256((ui.networks / f"{name}.safetensors").read_bytes()).hexdigest()[:10] for name in ("ink", "oil")}
    assert found["Hypernetwork hashes"] == f"ink: {files['ink']}, oil: {files['oil']}"


def test_a_picture_can_be_made_again_from_its_infotext(ui):
    about = {"rows": [("oil", 0.35, 0.0, 0.5), ("ink", -0.7, 0.25, 1.0)], "passes": "hires pass only", "enable_hr": True, "steps": 3}
    first = ui.txt2img("a star<hypernet:ink:0.3:k=0.5>", **about)
    values = pasted(ui, first.infotexts[0])
    prompt = ui.part("infotext_utils").parse_generation_parameters(first.infotexts[0])["Prompt"]
    rows = [values[index : index + 4] for index in range(0, 16, 4)]
    again = ui.txt2img(prompt, rows=rows, passes=values[-1], enable_hr=True, steps=3)
    assert torch.equal(again.latents[0], first.latents[0])


def test_an_old_infotexts_hypernetwork_becomes_a_tag_and_the_panel_is_emptied(ui):
    text = "a star\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 512x512, Hypernet: old one, Hypernet strength: 0.7"
    assert ui.part("infotext_utils").parse_generation_parameters(text)["Prompt"] == "a star<hypernet:old one:0.7>"
    assert pasted(ui, text) == [*EMPTY * 4, *PROMPT, "both passes"]


def test_what_is_no_pictures_infotext_leaves_the_panel_alone(ui):
    assert pasted(ui, "a star, nothing else") == [None] * 31


@pytest.mark.parametrize("said, first", [
    ("<hypernet:a:much><hypernet:b:0.5>", ["b", 0.5, 0.0, 1.0]),
    ("whatever", EMPTY),
    ("".join(f"<hypernet:{letter}>" for letter in "abcdef"), ["a", 1.0, 0.0, 1.0]),
])  # fmt: skip
def test_rows_that_cannot_be_shown_are_left_out(ui, said, first):
    text = f"a star\nSteps: 20, Sampler: Euler, CFG scale: 7, Hypernetworks: {json.dumps(said)}, Hypernetworks hires: never"
    values = pasted(ui, text)
    assert values[:4] == first and values[-1] == "both passes" and len(values) == 31


def plot(ui, x, y=("Nothing", [""]), rows=(), prompt="a star", **about):
    """The cells of an XYZ plot."""
    script = next(data.module.Script() for data in ui.part("scripts").scripts_data if data.script_class.__module__ == "xyz_grid.py")
    script.ui(is_img2img=False)
    p = ui.job(prompt, rows, negative_prompt="no dogs", **about)
    return script.run(p, *x, *y)


def axes(ui):
    module = next(data.module for data in ui.part("scripts").scripts_data if data.script_class.__module__ == "xyz_grid.py")
    return {option.label: option for option in module.axis_options}


def test_the_plots_axes_are_ours_and_its_own(ui):
    ours = [label for label in axes(ui) if label.startswith("[Hypernetwork] ")]
    assert ours == [f"[Hypernetwork] {name}" for name in ("Name", "Strength", "Start", "End", "Blend", "Block weights", "Text", "Reference", "Task")]
    assert {"Nothing", "Seed", "Denoising"} < set(axes(ui))
    assert axes(ui)["[Hypernetwork] Name"].choices() == ["None", "all", "foreign", "ink", "oil", "xl"]


def test_cells_are_the_pictures_of_what_their_axes_say(ui):
    cells = plot(ui, ("[Hypernetwork] Strength", ["0.3", "1"]), ("[Hypernetwork] Name", ["ink", "None"]), rows=[("oil", 0.5, 0.0, 0.5)], steps=2)
    single = [ui.txt2img("a star", rows=rows, negative_prompt="no dogs", steps=2) for rows in ([("ink", 0.3, 0, 0.5)], [("ink", 1, 0, 0.5)], [], [])]
    for cell, alone in zip(cells, single, strict=True):
        assert torch.equal(cell.latents[0], alone.latents[0])
    assert not torch.equal(cells[0].latents[0], cells[1].latents[0])


def test_a_name_without_a_row_in_the_panel_acts_at_full_strength(ui):
    (cell,) = plot(ui, ("[Hypernetwork] Name", ["ink"]), steps=2)
    assert torch.equal(cell.latents[0], ui.txt2img("a star", rows=[("ink", 1)], negative_prompt="no dogs", steps=2).latents[0])


def test_strength_and_time_reach_tags_too(ui):
    with recorded() as recording:
        plot(ui, ("[Hypernetwork] Strength", ["0.3"]), ("[Hypernetwork] Start", ["0.5"]), rows=[("ink", 0.9)], prompt="a star<hypernet:oil:0.5>")
    recording.check(ui, ["a star", "no dogs"], lambda row: [on(INK, 0.3), on(OIL, 0.3)] if row.step >= 2 else [])


@pytest.mark.parametrize("said", ["in=0 mid=0.5 out=1", "mid=0.5; in=0"])
def test_block_weights_are_written_as_in_a_tag(ui, said):
    with recorded() as recording:
        plot(ui, ("[Hypernetwork] Block weights", [said]), rows=[("oil", 0.9)], steps=2)
    recording.check(ui, ["a star", "no dogs"], lambda row: [on(OIL, 0.9, input=0.0, middle=0.5)])


def test_block_weights_that_cannot_be_stop_the_plot_with_a_sentence(ui):
    with pytest.raises(Exception, match="Block weights cannot be 'up=1': write for example in=0 mid=0.5 out=1."):
        plot(ui, ("[Hypernetwork] Block weights", ["up=1"]), rows=[("oil", 0.9)])


def test_a_time_that_cannot_be_is_told_below_the_cell(ui):
    cells = plot(ui, ("[Hypernetwork] Start", ["0.2", "0.8"]), rows=[("oil", 0.9, 0.0, 0.5)], steps=1)
    assert cells[0].comments == "" and "start and end are shares of the sampling steps" in cells[1].comments


def test_a_cells_infotext_says_what_was_changed_and_names_no_file_that_did_not_act(ui):
    cells = plot(ui, ("[Hypernetwork] Name", ["ink", "None"]), ("[Hypernetwork] Strength", ["0.3"]), rows=[("oil", 0.5)], steps=1)
    told = [ui.part("infotext_utils").parse_generation_parameters(cell.infotexts[0]) for cell in cells]
    assert told[0]["Hypernetwork hashes"].startswith("ink: ") and "Hypernetwork hashes" not in told[1]
    assert [one["Hypernetwork axes"] for one in told] == ["name=ink, strength=0.3", "name=None, strength=0.3"]


def test_a_plot_can_change_what_generators_make_their_weights_for_and_says_so(ui):
    cells = plot(ui, ("[Hypernetwork] Text", ["ink: black"]), ("[Hypernetwork] Blend", ["0.5"]), rows=[("oil", 0.5)], steps=1)
    told = ui.part("infotext_utils").parse_generation_parameters(cells[0].infotexts[0])
    assert told["Hypernetwork axes"] == "text=ink: black, blend=0.5"
    assert "'oil' generates no weights" in cells[0].comments


def test_the_next_job_knows_nothing_of_a_plot(ui):
    plot(ui, ("[Hypernetwork] Strength", ["0.3"]), rows=[("oil", 0.5)], steps=1)
    with recorded() as recording:
        result = ui.txt2img("a star", rows=[("oil", 0.5)], negative_prompt="no dogs", steps=1)
    recording.check(ui, ["a star", "no dogs"], lambda row: [on(OIL, 0.5)])
    assert "axes" not in result.infotexts[0]
