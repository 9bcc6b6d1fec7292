"""Pictures from A1111, Forge and reForge in miniature: every row of every evaluation is what plain hooks give it."""
import pytest
import torch

pytest.importorskip("gradio", reason="a web UI is made of it")

import web_ui
from web_ui.recording import NO, check, recorded
from web_ui.shelf import ALL, INK, OIL, XL, fill, on

from hypernetworks.attention import ResidualEdit, attached

LONG = "no dogs, no cats and no mice on any picture, be it ever so small; least of all more than one of them"  # as many as seven chunks


@pytest.fixture(scope="module", params=web_ui.TREES)
def running(request, tmp_path_factory):
    with web_ui.started(request.param, tmp_path_factory.mktemp(request.param)) as ui:
        fill(ui)
        yield ui


@pytest.fixture
def ui(running):
    with running.one_test():
        yield running


def test_a_tag_gives_the_picture_of_plain_hooks(ui):
    bare = ui.txt2img("a star")
    with attached(ui.unet, [ResidualEdit(*on(OIL, 0.5))]):
        plain = ui.txt2img("a star")
    tagged = ui.txt2img("a star<hypernet:oil:0.5>")
    assert torch.equal(tagged.latents[0], plain.latents[0]) and tagged.images[0].tobytes() == plain.images[0].tobytes()
    assert not torch.equal(tagged.latents[0], bare.latents[0]) and tagged.images[0].tobytes() != bare.images[0].tobytes()


def test_strength_zero_an_empty_time_and_no_tag_leave_every_bit(ui):
    bare = ui.txt2img("a star").latents[0]
    for tag in ("<hypernet:oil:0>", "<hypernet:oil:1:end=0>", "<hypernet:oil:1:k=0:v=0>", "<hypernet:none>", ""):
        assert torch.equal(ui.txt2img(f"a star{tag}").latents[0], bare), tag


def test_each_picture_of_a_batch_follows_its_own_prompt(ui):
    acting = {"a star": [on(OIL, 0.5)], "a ring": [], "a disc": [on(INK, 0.7), on(OIL, -0.4)]}
    acting |= dict(zip(NO, acting.values(), strict=True))
    prompts = ["a star<hypernet:oil:0.5>", "a ring", "a disc<hypernet:ink:0.7><hypernet:oil:-0.4>"]
    rows, _ = check(ui, prompts, lambda row: acting[row.text])
    assert len(rows) == 4 * 6


def test_batches_one_after_another_follow_their_own_prompts(ui):
    acting = {"a star": [on(OIL, 0.5)], "a ring": [on(INK, 0.9)], "no dogs": [on(OIL, 0.5)], "no cats": [on(INK, 0.9)]}
    rows, result = check(
        ui, ["a star<hypernet:oil:0.5>", "a ring<hypernet:ink:0.9>"], lambda row: acting[row.text], batch_size=1, n_iter=2
    )
    assert len(result.latents) == 2 and len(rows) == 2 * 4 * 2


@pytest.mark.parametrize("tag, strength", [
    ("0.8", {"overall": 0.8}),
    ("-0.5:0.3:1.5", {"overall": -0.5, "k": 0.3, "v": 1.5}),
    ("1:k=0:v=0.7", {"k": 0.0, "v": 0.7}),
    ("1:in=0.2:mid=1.4:out=-0.3", {"input": 0.2, "middle": 1.4, "output": -0.3}),
    ("0.6:in=0:mid=0", {"overall": 0.6, "input": 0.0, "middle": 0.0}),
], ids=str)  # fmt: skip
def test_each_argument_of_a_tag_is_the_factor_that_it_says(ui, tag, strength):
    check(ui, [f"a star<hypernet:oil:{tag}>"], lambda row: [on(OIL, **strength)], steps=2)


@pytest.mark.parametrize("start, end, acting", [(0, 0.4, {0, 1}), (0.4, 0.8, {2, 3}), (0.8, 1, {4}), (0.5, 1, {3, 4})], ids=str)
def test_a_network_acts_from_its_start_to_its_end(ui, start, end, acting):
    tag = f"<hypernet:oil:1:start={start}:end={end}>"
    rows, _ = check(ui, [f"a star{tag}"], lambda row: [on(OIL)] if row.step in acting else [], steps=5)
    assert {row.step for row in rows} == {0, 1, 2, 3, 4}


def test_with_a_sampler_of_second_order_a_step_is_two_evaluations(ui):
    """Of Heun's seven the first four belong to the first half of four steps."""
    with recorded() as recording:
        ui.txt2img("a star<hypernet:oil:1:start=0.5>", negative_prompt="no dogs", sampler_name="Heun")
    found = [[on(OIL)] if number >= 4 else [] for number in range(7)]
    assert len(recording.calls) == 7
    for call, edits in zip(recording.calls, found, strict=True):
        torch.testing.assert_close(call.output[:1], call.again(0, edits), atol=1e-4, rtol=1e-4)


def test_without_uncond_only_the_rows_of_the_prompt_are_changed(ui):
    check(ui, ["a star<hypernet:oil:0.9:uncond=0>"], lambda row: [] if row.negative else [on(OIL, 0.9)])


def test_networks_act_one_behind_the_other_first_the_panels_then_the_tags(ui):
    rows = [("ink", 0.7, 0, 1)]
    check(ui, ["a star<hypernet:oil:0.5>"], lambda row: [on(INK, 0.7), on(OIL, 0.5)], rows=rows)
    check(ui, ["a star<hypernet:oil:0.5><hypernet:ink:0.7>"], lambda row: [on(OIL, 0.5), on(INK, 0.7)])


def test_the_panels_rows_have_a_time(ui):
    rows = [("ink", 0.7, 0, 0.5), ("None", 1, 0, 1), ("oil", -0.5, 0.5, 1)]
    check(ui, ["a star"], lambda row: [on(INK, 0.7)] if row.step < 2 else [on(OIL, -0.5)], rows=rows)


@pytest.mark.parametrize("passes, first, hires", [("both passes", 1, 1), ("first pass only", 1, 0), ("hires pass only", 0, 1)])
def test_the_panel_acts_in_the_passes_of_hires_fix_that_are_chosen(ui, passes, first, hires):
    def wanted(row):
        return [on(OIL, 0.6)] * (hires if row.hires else first)

    rows, _ = check(ui, ["a star"], wanted, rows=[("oil", 0.6)], passes=passes, enable_hr=True, steps=2, hr_second_pass_steps=2)
    assert {row.hires for row in rows} == {False, True}


def test_tags_of_the_hires_prompt_act_in_its_pass(ui):
    acting = {"a star": [on(OIL, 0.6)], "a ring": [on(INK, 0.8)], "a blue star": [on(INK, -0.5)], "a blue ring": []}
    acting |= {("no dogs", False): acting["a star"], ("no cats", False): acting["a ring"], ("no dogs", True): acting["a blue star"]}
    prompts, hires = ["a star<hypernet:oil:0.6>", "a ring<hypernet:ink:0.8>"], ["a blue star<hypernet:ink:-0.5>", "a blue ring"]
    check(
        ui, prompts, lambda row: acting.get((row.text, row.hires), []) if row.negative else acting[row.text], enable_hr=True, hr_prompt=hires,
        hr_negative_prompt=NO[:2], steps=2,
    )  # fmt: skip


def test_where_the_hires_prompt_is_the_same_its_tags_act_too(ui):
    check(ui, ["a star<hypernet:oil:0.6>"], lambda row: [on(OIL, 0.6)], enable_hr=True, steps=2)


@pytest.mark.parametrize("refiner, kept", [("alike", 1), ("alike", 2), ("wide", 1)])
def test_a_refiner_that_takes_over_is_changed_too(ui, refiner, kept):
    ui.opts.sd_checkpoints_limit = kept
    before = len(ui.loaded)
    about = {"refiner_checkpoint": refiner, "refiner_switch_at": 0.5, "comments": "left unused: the model base has no width"}
    rows, _ = check(ui, ["a star<hypernet:all:0.6>"], lambda row: [on(ALL, 0.6)], **about)
    seen = [row.unet for row in rows]
    assert (seen[0] is seen[-1]) == (ui.kind == "a1111" and refiner == "alike" and kept == 1) and seen.index(seen[-1]) in (0, 4)
    if ui.kind != "a1111":
        assert len(ui.loaded) - before == 1  # the refiner, once; what the settings choose comes back with the next job


@pytest.mark.parametrize("kept", [1, 2])
def test_another_checkpoint_for_the_hires_pass_is_changed_too(ui, kept):
    ui.opts.sd_checkpoints_limit = kept
    before = len(ui.loaded)
    check(ui, ["a star<hypernet:oil:0.6>"], lambda row: [on(OIL, 0.6)], enable_hr=True, hr_checkpoint_name="alike", steps=2)
    if ui.kind != "a1111":
        assert len(ui.loaded) - before == 1


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("negative", [NO, [LONG, "no cats"]], ids=["equally long", "longer"])
def test_parts_joined_by_and_belong_to_their_picture_however_rows_are_cut(ui, together, negative):
    """A1111 cuts by an option and where lengths differ, Forge where they differ much and by the memory that is free."""
    ui.opts.batch_cond_uncond = together
    if ui.kind != "a1111":
        ui.memory.free = (1 << 40) if together else 1
    acting = {"a moon": [on(OIL, 0.5)], " a star": [on(OIL, 0.5)], "a ring": [on(INK, 0.8)], negative[0]: [], "no cats": [on(INK, 0.8)]}
    prompts = ["a moon AND a star:0.5<hypernet:oil:0.5:uncond=0>", "a ring<hypernet:ink:0.8>"]
    rows, _ = check(ui, prompts, lambda row: acting[row.text], negative=negative)
    if ui.kind != "a1111":
        ui.memory.free = 1 << 40
    assert {row.text for row in rows} == set(acting) - ({" a star"} if ui.kind != "a1111" else set())


def test_where_negative_prompts_are_left_out_the_others_keep_their_places(ui):
    acting = {"a star": [on(OIL, 0.5)], "a ring": [on(INK, 0.7)], "no dogs": [], "no cats": [on(INK, 0.7)]}
    prompts = ["a star<hypernet:oil:0.5:uncond=0>", "a ring<hypernet:ink:0.7>"]
    rows, _ = check(ui, prompts, lambda row: acting[row.text], s_min_uncond=1000.0)
    assert sum(row.negative for row in rows) == 2 * 2  # at every second step
    rows, _ = check(ui, prompts, lambda row: acting[row.text], cfg_scale=1.0)
    assert any(row.negative for row in rows) == (ui.kind == "a1111")


def test_stable_diffusion_xl_has_its_conditioning_in_two_parts(ui):
    if ui.kind == "reforge":
        pytest.skip("this miniature has no XL")
    ui.choose("xl")
    acting = {"a star": [on(XL, 0.5)], "a ring": [], "no dogs": [], "no cats": []}
    rows, _ = check(ui, ["a star<hypernet:xl:0.5:uncond=0>", "a ring"], lambda row: acting[row.text])
    assert rows[0].unet is ui.unet and rows[0].unet.label_emb is not None
