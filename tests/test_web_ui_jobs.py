"""What a job of a web UI leaves behind and says: notes, what failed, what another extension or the web UI itself wants at the same time."""
import pytest
import torch

pytest.importorskip("gradio", reason="a web UI is made of it")

import web_ui
from models import hooks
from web_ui.recording import check, recorded
from web_ui.shelf import INK, OIL, fill, on


@pytest.fixture(scope="module", params=web_ui.TREES)
def running(request, tmp_path_factory):
    with web_ui.started(request.param, tmp_path_factory.mktemp(request.param)) as ui:
        fill(ui)
        (ui.networks / "broken.safetensors").write_bytes(b"nothing of the kind")
        yield ui


@pytest.fixture
def ui(running):
    with running.one_test():
        yield running


@pytest.mark.parametrize("tag, said", [
    ("<hypernet:gone>", "There is no hypernetwork 'gone'"),
    ("<hypernet:foreign>", "The hypernetwork 'foreign' is for another model"),
    ("<hypernet:broken>", "broken.safetensors"),
    ("<hypernet:ink:weight=1>", "The tag <hypernet:ink:weight=1> cannot be read"),
    ("<hypernet:ink:1:start=0.8:end=0.2>", "start and end are shares of the sampling steps"),
], ids=str)  # fmt: skip
def test_what_cannot_be_used_is_named_below_the_picture_and_the_rest_acts(ui, tag, said):
    acting = {"a star": [on(OIL, 0.5)], "no dogs": [on(OIL, 0.5)], "a ring": [on(INK, 0.7)], "no cats": [on(INK, 0.7)]}
    prompts = [f"a star{tag}<hypernet:oil:0.5>", f"a ring<hypernet:ink:0.7>{tag}"]
    _, result = check(ui, prompts, lambda row: acting[row.text], comments=said, steps=2)
    assert result.comments.count(said) == 1


def test_a_network_that_fits_in_part_says_what_is_left_unused(ui):
    result = ui.txt2img("a star<hypernet:all>", steps=1)
    assert result.comments == "Of the hypernetwork 'all' 1 of 3 widths are left unused: the model base has no width 12.\n"


def test_a_panel_that_cannot_be_is_named_and_the_tags_act(ui):
    rows = [("ink", 1.0, 0.8, 0.2)]
    check(ui, ["a star<hypernet:oil:0.5>"], lambda row: [on(OIL, 0.5)], comments="start and end are shares", rows=rows, steps=2)


def test_a_name_in_the_panel_that_no_tag_can_hold_is_named_below_the_picture(ui):
    result = ui.txt2img("a star", rows=[("a:b", 1.0)], steps=1)
    assert ui.errors == [] and "'a:b'" in result.comments


def test_another_kind_of_model_gives_its_picture_and_a_sentence(ui):
    ui.choose("flux")
    bare = ui.txt2img("a star", steps=1).latents[0]
    result = ui.txt2img("a star<hypernet:oil>", steps=1)
    assert "is no Stable Diffusion 1, 2 or XL" in result.comments and torch.equal(result.latents[0], bare)


def test_behind_a_job_the_model_is_as_it_was(ui):
    ui.txt2img("a star", steps=1)
    before = {name: (parameter, parameter.requires_grad, parameter.clone()) for name, parameter in ui.unet.named_parameters()}
    modes = [part.training for part in ui.unet.modules()]
    attributes = [set(vars(part)) for part in ui.unet.modules()]
    ui.txt2img(["a star<hypernet:oil>", "a ring"], rows=[("ink", 0.5)], batch_size=2, enable_hr=True, steps=2)
    for name, parameter in ui.unet.named_parameters():
        assert parameter is before[name][0] and parameter.requires_grad == before[name][1] and torch.equal(parameter, before[name][2])
    assert [part.training for part in ui.unet.modules()] == modes and [set(vars(part)) for part in ui.unet.modules()] == attributes
    assert ui.hooks() == 0


def test_behind_an_interrupted_job_nothing_is_left(ui):
    def stop(params):
        if params.denoiser.step == 2:
            ui.state.interrupt()

    callbacks = ui.part("script_callbacks").callback_map["callbacks_cfg_denoiser"]
    ui.part("script_callbacks").on_cfg_denoiser(stop)
    try:
        with recorded() as recording:
            ui.txt2img("a star<hypernet:oil>", n_iter=2, enable_hr=True)
    finally:
        callbacks.pop()
    assert len(recording.calls) == 3 and ui.hooks() == 0
    bare = ui.txt2img("a ring").latents[0]
    assert torch.equal(ui.txt2img("a ring").latents[0], bare)


class Failure(Exception):
    """Of another extension, within the UNet."""


def fails(ui, **about):
    """A job whose second evaluation fails amid the UNet."""
    calls = []

    def fail(part, inputs, output):
        calls.append(part)
        if len(calls) == 2:
            raise Failure

    handle = ui.unet.middle_block[2].register_forward_hook(fail)
    try:
        with pytest.raises(Failure):
            ui.txt2img("a star<hypernet:oil>", **about)
    finally:
        handle.remove()


def test_behind_an_error_within_the_unet_nothing_is_left_on_it(ui):
    bare = ui.txt2img("a ring").latents[0]
    fails(ui)
    assert hooks(ui.unet) == 0
    assert torch.equal(ui.txt2img("a ring").latents[0], bare)
    assert ui.hooks() == 0


def test_behind_an_error_even_a_job_without_extensions_is_what_it_is(ui):
    """Such as those of other extensions: process_images with a job that has no scripts and no extra networks."""
    processing = ui.part("processing")

    def alone():
        about = {"prompt": "a ring", "sampler_name": "Euler", "steps": 2, "cfg_scale": 3.0, "width": 32, "height": 32, "seed": 3}
        return processing.process_images(processing.StableDiffusionProcessingTxt2Img(**about, disable_extra_networks=True)).latents[0]

    bare = alone()
    fails(ui)
    assert torch.equal(alone(), bare)
    ui.txt2img("a star", steps=1)


def test_the_web_uis_own_hypernetworks_are_out_of_the_way(ui):
    registry = ui.part("extra_networks").extra_network_registry
    own = ui.part("extra_networks_hypernet").ExtraNetworkHypernet
    assert set(registry) == {"hypernet"} and not isinstance(registry["hypernet"], own)
    ui.txt2img("a star<hypernet:oil>", steps=1)
    assert ui.shared.loaded_hypernetworks == []


def test_the_network_that_the_settings_add_acts_and_stands_in_the_infotext(ui):
    ui.opts.sd_hypernetwork, ui.opts.extra_networks_default_multiplier = "ink", 0.7
    _, result = check(ui, ["a star"], lambda row: [on(INK, 0.7)], steps=2)
    assert result.infotexts[0].startswith("a star<hypernet:ink:0.7>\n")
    _, result = check(ui, ["a star<hypernet:ink:0.3>"], lambda row: [on(INK, 0.3)], steps=2)
    assert result.infotexts[0].startswith("a star<hypernet:ink:0.3>\n")
    acting = {"a star": [on(OIL, 0.5), on(INK, 0.7)], "no dogs": [on(OIL, 0.5), on(INK, 0.7)], "a ring": [on(INK, 0.7)], "no cats": [on(INK, 0.7)]}
    check(ui, ["a star<hypernet:oil:0.5>", "a ring"], lambda row: acting[row.text], steps=2)
    check(ui, ["a star<hypernet:oil:0.5>", "a ring"], lambda row: acting[row.text], steps=2, batch_size=1, n_iter=2)
    ui.opts.sd_hypernetwork = "gone"
    assert "'gone'" in ui.txt2img("a star", steps=1).comments


def test_with_the_settings_network_a_refiner_does_not_mix_the_pictures_up(ui):
    """Forge and reForge activate again where a refiner takes over, within the same batch."""
    ui.opts.sd_hypernetwork, ui.opts.extra_networks_default_multiplier = "ink", 0.7
    acting = {"a star": [on(OIL, 0.5), on(INK, 0.7)], "no dogs": [on(OIL, 0.5), on(INK, 0.7)], "a ring": [on(INK, 0.7)], "no cats": [on(INK, 0.7)]}
    prompts = ["a star<hypernet:oil:0.5>", "a ring"]
    check(ui, prompts, lambda row: acting[row.text], steps=2, refiner_checkpoint="alike", refiner_switch_at=0.5)


def test_prompts_that_another_script_puts_in_are_followed(ui):
    """As far as they can be known: extra networks hear of the first prompt's tags."""

    def put_in(p, *values, prompts, **about):
        prompts[:] = ["a moon<hypernet:ink:0.6>"] * len(prompts)

    with ui.other_script(before_process_batch=put_in), recorded() as recording:
        ui.txt2img(["a star<hypernet:oil:0.5>", "a ring"], negative_prompt=["no dogs", "no cats"], batch_size=2, steps=2)
    recording.check(ui, ["a moon", "no dogs", "no cats"], lambda row: [on(INK, 0.6)])


def test_a_job_without_extra_networks_has_none(ui):
    bare = ui.txt2img("a star").latents[0]
    assert torch.equal(ui.txt2img("a star<hypernet:oil>", disable_extra_networks=True).latents[0], bare)


def test_on_forge_the_patchers_of_the_checkpoint_stay_as_they_are(ui):
    if ui.kind == "a1111":
        pytest.skip("has no patchers")
    ui.txt2img("a star<hypernet:oil>", enable_hr=True, steps=2)
    objects = ui.shared.sd_model.forge_objects_original
    assert "model_function_wrapper" not in objects.unet.model_options
    used = ui.shared.sd_model.forge_objects.unet
    copied = used.clone().model_options["model_function_wrapper"]
    assert copied is used.model_options["model_function_wrapper"]  # a function, which a deep copy leaves alone


def test_on_forge_another_extensions_wrapper_keeps_working(ui):
    if ui.kind == "a1111":
        pytest.skip("has no patchers")
    seen = []

    def inner(apply_model, arguments):
        seen.append(list(arguments["cond_or_uncond"]))
        return 0.5 * apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    def put_on(p, *values, **about):
        unet = p.sd_model.forge_objects.unet.clone()
        unet.set_model_unet_function_wrapper(inner)
        p.sd_model.forge_objects.unet = unet

    with ui.other_script(process_before_every_sampling=put_on):
        bare = ui.txt2img("a star", negative_prompt="no dogs", steps=2).latents[0]
        _, result = check(ui, ["a star<hypernet:oil:0.5>"], lambda row: [on(OIL, 0.5)], steps=2)
    assert seen == [[1, 0]] * 4 and not torch.equal(bare, result.latents[0])


def test_when_nobody_watches_any_more_a_patcher_of_the_job_still_works(ui):
    """It stays in `forge_objects` until the next job begins; whoever evaluates it meanwhile gets the plain model."""
    if ui.kind == "a1111":
        pytest.skip("has no patchers")
    ui.txt2img("a star<hypernet:oil>", steps=1)
    patcher = ui.shared.sd_model.forge_objects.unet
    x, sigma, context = torch.ones(1, 4, 4, 4), torch.ones(1), ui.encoded("a star")[None]
    arguments = {"input": x, "timestep": sigma, "c": {"c_crossattn": context, "transformer_options": {}}, "cond_or_uncond": [0]}
    with torch.inference_mode():
        plain = patcher.model.apply_model(x, sigma, c_crossattn=context)
        wrapped = patcher.model_options["model_function_wrapper"](patcher.model.apply_model, arguments)
    assert torch.equal(wrapped, plain)
