"""`host.Host` on A1111, Forge and reForge in miniature: facts, prompts, pictures, the noise schedule, previews, the queue."""
import dataclasses
import math
import random
import threading

import pytest
import torch
from PIL import Image, ImageChops

pytest.importorskip("gradio", reason="a web UI is made of it")

import web_ui
from web_ui.checkpoints import CHECKPOINTS
from web_ui.parts import POOLED, alphas_cumprod
from web_ui.recording import recorded
from web_ui.shelf import INK, OIL, fill, on

from hypernetworks.attention import ResidualEdit, attached
from hypernetworks.catalog import Catalog
from hypernetworks.host import Conditioning, GenerationRequest, PictureSize, Row
from hypernetworks.prompt import ActiveNetwork
from hypernetworks.session import Session

STAR = GenerationRequest("a (star)", "no dogs", steps=3, cfg_scale=3.0, width=32, height=32, seed=7)


@pytest.fixture(scope="module", params=web_ui.TREES)
def running(request, tmp_path_factory):
    with web_ui.started(request.param, tmp_path_factory.mktemp(request.param)) as ui:
        fill(ui)
        yield ui


@pytest.fixture
def ui(running):
    with running.one_test():
        yield running


@pytest.fixture
def host(ui):
    ui.choose("base")
    return ui.host


def error(ui, name):
    """A class of the package that the web UI has loaded."""
    import sys

    return getattr(sys.modules[f"{type(ui.extension).__module__.rpartition('.')[0]}.errors"], name)


def text_encoder(ui):
    sd_model = ui.shared.sd_model
    if ui.kind == "a1111":
        return sd_model.cond_stage_model
    found = sd_model.forge_objects.clip.cond_stage_model
    return found["encoder"] if ui.kind == "forge" else found


def autoencoder(ui):
    return ui.shared.sd_model.first_stage_model if ui.kind == "a1111" else ui.shared.sd_model.forge_objects.vae.first_stage_model


def read(ui, text):
    """Each bracket is a letter."""
    with torch.inference_mode():
        return text_encoder(ui)(text, "None")


def test_what_is_loaded_is_told(ui, host):
    facts = host.model
    assert (facts.name, facts.hash, facts.family, facts.prediction_type) == ("base", CHECKPOINTS["base"].shorthash, "sd1", "epsilon")
    assert (facts.resolution, facts.latent_factor, facts.vae, facts.clip_skip) == (512, 8, "", 1)
    assert host.unet is ui.unet and host.device == torch.device("cpu") and host.dtype == torch.float32 and host.rows == ()


def test_facts_follow_what_is_chosen(ui, host):
    ui.choose("velocity")
    facts = host.model
    assert (facts.name, facts.family, facts.prediction_type, facts.resolution) == ("velocity", "sd2", "v_prediction", 768)
    ui.opts.CLIP_stop_at_last_layers = 2
    ui.part("sd_vae").loaded_vae_file = "/models/VAE/blue.safetensors"
    try:
        assert (host.model.clip_skip, host.model.vae) == (2, "blue.safetensors")
    finally:
        ui.part("sd_vae").loaded_vae_file = None
    ui.shared.sd_model.image_size = 8  # latent cells, of a model that is smaller than Stable Diffusion 1
    assert host.model.resolution == 64


def test_xl_is_told_by_its_flag(ui, host):
    ui.choose("xl")
    assert (host.model.family, host.model.resolution) == ("sdxl", 1024)


def test_another_kind_of_model_is_refused(ui, host):
    ui.choose("flux")
    with pytest.raises(error(ui, "ModelUnfit"), match="is no Stable Diffusion 1, 2 or XL"):
        host.model  # noqa: B018


def test_the_noise_schedule_is_that_of_training_whatever_generation_wants(ui, host):
    if ui.kind == "a1111":
        ui.shared.sd_model.alphas_cumprod = ui.shared.sd_model.alphas_cumprod_original.half()
    found = host.alphas_cumprod
    assert found.shape == (1000,) and found.dtype == torch.float32 and not found.is_inference() and not found.requires_grad
    torch.testing.assert_close(found, alphas_cumprod(), atol=1e-6, rtol=1e-5)
    if ui.kind == "a1111":
        ui.shared.sd_model.alphas_cumprod = ui.shared.sd_model.alphas_cumprod_original


def test_prompts_are_taken_letter_by_letter(ui, host):
    texts = ["a (star) [blue]", "", "x" * 20]
    found = host.encode_prompts(texts)
    assert found.context.shape == (3, 32, 16) and found.pooled is None
    assert not found.context.requires_grad and not found.context.is_inference()
    for row, text in zip(found.context, texts, strict=True):
        said = read(ui, text)
        assert torch.equal(row[: len(said)], said) and all(torch.equal(token, said[-1]) for token in row[len(said) :])
    with_brackets, emphasized = read(ui, "(a)"), ui.encoded("(a)")
    assert torch.equal(host.encode_prompts(["(a)"]).context[0], with_brackets) and not torch.equal(with_brackets, emphasized)


def test_the_setting_of_emphasis_comes_back_also_after_an_error(ui, host):
    for asked in ("Original", "Ignore", None):
        ui.opts.data["emphasis"] = asked
        if asked is None:
            del ui.opts.data["emphasis"]
        host.encode_prompts(["a"])
        assert ui.opts.data.get("emphasis") == asked and ("emphasis" in ui.opts.data) == (asked is not None)

        def fail(prompts):
            raise ZeroDivisionError

        sd_model = ui.shared.sd_model
        sd_model.get_learned_conditioning = fail
        try:
            with pytest.raises(ZeroDivisionError):
                host.encode_prompts(["a"])
        finally:
            del sd_model.get_learned_conditioning
        assert ui.opts.data.get("emphasis") == asked and ("emphasis" in ui.opts.data) == (asked is not None)
    ui.opts.data["emphasis"] = "Original"


def test_pictures_become_mean_and_variance_of_scaled_latents(ui, host):
    pixels = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    mean, logvar = host.encode_pictures(pixels)
    vae = autoencoder(ui)
    with torch.no_grad():
        moments = vae.quant_conv(vae.encoder(pixels))
    torch.testing.assert_close(mean, moments[:, :4] * 0.18215)
    torch.testing.assert_close((logvar / 2).exp(), (moments[:, 4:] / 2).exp() * 0.18215)  # the deviation is scaled as the mean is
    for found in (mean, logvar):
        assert found.shape == (2, 4, 2, 3) and found.dtype == torch.float32 and not found.is_inference() and not found.requires_grad


def test_an_autoencoder_that_shifts_is_followed(ui, host):
    if ui.kind != "forge":
        pytest.skip("only Forge's has a shift")
    pixels = torch.zeros(1, 3, 8, 8)
    plain, _ = host.encode_pictures(pixels)
    autoencoder(ui).shift_factor = 0.5
    try:
        torch.testing.assert_close(host.encode_pictures(pixels)[0], plain - 0.5 * 0.18215)
    finally:
        autoencoder(ui).shift_factor = None


def size_numbers(size):
    """sgm's ConcatTimestepEmbedderND with outdim 256: 128 cosines of each number, then its sines, at 10000^(-i/128)."""
    angles = [[number * 10000 ** (-i / 128) for i in range(128)] for number in (*size.original, *size.crop, *size.target)]
    return torch.tensor([[f(angle) for f in (math.cos, math.sin) for angle in row] for row in angles], dtype=torch.float64).flatten()


def test_the_unet_is_asked_as_the_web_ui_asks_it(ui, host):
    x, times = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([20, 700])
    sizes = [PictureSize((512, 768), (0, 64), (512, 512))] * 2
    conditioning = host.encode_prompts(["a star", "a ring"])
    with torch.no_grad():
        found = host.predict(x, times, conditioning, sizes)
        assert torch.equal(found, ui.unet(x, times, context=conditioning.context))


def test_xl_is_told_the_sizes(ui, host):
    if ui.kind == "reforge":
        pytest.skip("this miniature has no XL")
    ui.choose("xl")
    x, times = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([20, 700])
    sizes = [PictureSize((512, 768), (0, 64), (512, 512)), PictureSize((1024, 1024), (0, 0), (1024, 1024))]
    conditioning = host.encode_prompts(["a star", "a ring"])
    assert conditioning.pooled.shape == (2, POOLED) and not conditioning.pooled.is_inference()
    with recorded() as recording, torch.no_grad():
        host.predict(x, times, conditioning, sizes)
    (call,) = recording.calls
    assert torch.equal(call.y[:, :POOLED], conditioning.pooled)
    wanted = torch.stack([size_numbers(size) for size in sizes])
    torch.testing.assert_close(call.y[:, POOLED:].double(), wanted, atol=2e-4, rtol=0)  # angles of up to 1024 in float32


def test_previews_are_what_the_web_ui_draws_without_scripts_and_tags(ui, host):
    (picture,) = host.generate(dataclasses.replace(STAR, literal=False))
    asked = ui.txt2img("a (star)", negative_prompt="no dogs", steps=3, disable_extra_networks=True)
    assert picture.tobytes() == asked.images[0].tobytes()
    (literal,) = host.generate(STAR)
    assert literal.tobytes() != picture.tobytes() and ui.opts.emphasis == "Original"
    with recorded() as recording:
        host.generate(STAR)
    said = [read(ui, "a (star)"), read(ui, "no dogs")]
    assert all(any(torch.equal(row, text) for text in said) for call in recording.calls for row in call.context)


def test_a_preview_says_each_step_before_it_and_what_its_rows_are(ui, host):
    seen = []
    pictures = host.generate(dataclasses.replace(STAR, count=2, prompts=("a star", "a ring")), lambda step, steps: seen.append((step, steps, host.rows)))
    assert len(pictures) == 2 and pictures[0].size == (32, 32) and pictures[0].tobytes() != pictures[1].tobytes()
    assert [(step, steps) for step, steps, _ in seen] == [(0, 3), (1, 3), (2, 3)]
    conds, unconds = [(0, False), (1, False)], [(0, True), (1, True)]
    wanted = [*conds, *unconds] if ui.kind == "a1111" else [*unconds, *conds]
    for _, _, rows in seen:
        assert [(row.picture, row.uncond) for row in rows] == wanted
    assert host.rows == () and ui.hooks() == 0


def test_pictures_of_one_preview_have_seeds_that_follow_each_other(ui, host):
    """Each starts from the noise of its own seed. What a UNet computes for two at once differs by rounding, which may be one level of a colour."""
    with recorded() as recording:
        together = host.generate(dataclasses.replace(STAR, count=2))
        first = recording.calls[0]
        for place, seed in enumerate((7, 8)):
            recording.calls.clear()
            (alone,) = host.generate(dataclasses.replace(STAR, seed=seed))
            assert all(torch.equal(row, recording.calls[0].x[0]) for row in first.x[place::2])
            assert levels_between(together[place], alone) <= 1
    assert levels_between(*together) > 100


def levels_between(picture, other):
    """The largest difference of two pictures' colours, of 255."""
    return max(high for _, high in ImageChops.difference(picture, other).getextrema())


def test_networks_that_are_on_act_in_previews(ui, host):
    bare = host.generate(STAR)[0].tobytes()
    with attached(host.unet, [ResidualEdit(*on(OIL, 0.6))]):
        changed = host.generate(STAR)[0].tobytes()
    assert changed != bare and host.generate(STAR)[0].tobytes() == bare
    with_tag = dataclasses.replace(STAR, prompt="a (star)<hypernet:oil:0.6>")
    assert Session(Catalog(ui.networks)).generate(host, with_tag)[0].tobytes() == changed


def test_a_preview_without_scripts_draws_no_tag_and_activates_nothing(ui, host):
    activated = []
    registry = ui.part("extra_networks").extra_network_registry
    ours = registry["hypernet"]
    registry["hypernet"] = type("Spy", (), {"name": "hypernet", "activate": lambda *about: activated.append(about), "deactivate": lambda *about: None})()
    try:
        host.generate(STAR)
    finally:
        registry["hypernet"] = ours
    assert activated == []


def test_a_session_sets_strengths_row_by_row_in_previews(ui, host):
    session = Session(Catalog(ui.networks))
    request = dataclasses.replace(STAR, negative_prompt="no dogs", count=2, prompts=("a star<hypernet:oil:0.5:uncond=0>", "a ring"))
    with recorded() as recording:
        session.generate(host, request, [ActiveNetwork("ink", 0.4)])
    acting = {"a star": [on(INK, 0.4), on(OIL, 0.5)], "a ring": [on(INK, 0.4)], "no dogs": [on(INK, 0.4)]}
    recording.check(ui, list(acting), lambda row: acting[row.text])


def test_previews_leave_the_state_of_chance_alone(ui, host):
    torch.manual_seed(5)
    random.seed(5)
    before, others = torch.get_rng_state(), random.getstate()
    host.generate(STAR)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == others


def test_an_interrupted_preview_says_so(ui, host):
    with pytest.raises(error(ui, "Interrupted")):
        host.generate(dataclasses.replace(STAR, count=2), lambda step, steps: ui.state.interrupt())
    ui.state.interrupted = False
    assert ui.hooks() == 0 and host.rows == ()


def test_a_preview_before_which_somebody_interrupted_says_so(ui, host):
    ui.state.interrupt()
    try:
        with pytest.raises(error(ui, "Interrupted")):
            host.generate(STAR)
    finally:
        ui.state.interrupted = False


def test_an_error_amid_a_preview_leaves_nothing(ui, host):
    def fail(step, steps):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        host.generate(STAR, fail)
    assert ui.hooks() == 0 and host.rows == () and ui.opts.emphasis == "Original"
    assert len(host.generate(STAR)) == 1


def test_the_queue_is_held_and_given_back(ui, host):
    lock = ui.part("call_queue").queue_lock
    with host.exclusive():
        assert lock.locked() and ui.state.job == "hypernetworks"
    assert not lock.locked() and ui.state.job == ""
    with pytest.raises(ZeroDivisionError), host.exclusive():
        raise ZeroDivisionError
    assert not lock.locked() and ui.state.job == ""


def test_who_comes_meanwhile_waits(ui, host):
    order = []

    def job():
        ui.txt2img("a star", steps=1)
        order.append("picture")

    ui.runner  # noqa: B018 (the page is built in this thread)
    with host.exclusive():
        thread = threading.Thread(target=job)
        thread.start()
        thread.join(0.2)
        order.append("training")
    thread.join(60)
    assert order == ["training", "picture"]


def test_progress_goes_to_the_web_uis_bar_and_its_interruption_comes_back(ui, host):
    with host.exclusive():
        assert host.report("Training oil", 3, 40) is False
        assert (ui.state.job_no, ui.state.job_count, ui.state.textinfo) == (3, 40, "Training oil")
        ui.state.interrupt()
        assert host.report("Training oil", 4, 40) is True
    with host.exclusive():
        assert host.report("Training oil", 0, 0) is False  # the next job does not inherit it
        ui.state.stop_generating()
        assert host.report("Training oil", 1, 40) is True
    ui.state.stopping_generation = False


def test_captions_come_from_the_web_uis_interrogator(ui, host):
    assert host.captioner is None

    class Interrogator:
        def interrogate(self, pil_image):
            return f"{pil_image.mode} {pil_image.size}"

    ui.shared.interrogator = Interrogator()
    try:
        assert host.captioner(Image.new("RGBA", (4, 6))) == "RGB (4, 6)"
    finally:
        ui.shared.interrogator = None


def test_encoders_leave_for_training_where_the_user_wants_that_and_come_back(ui, host):
    if ui.kind != "a1111":
        host.release_encoders()  # the memory manager does it
        return
    moves = []
    sd_model = ui.shared.sd_model
    parts = {"text": sd_model.cond_stage_model, "pictures": sd_model.first_stage_model}
    for name, part in parts.items():
        part.to = lambda device, name=name: moves.append((name, str(device)))
    try:
        host.release_encoders()
        assert moves == []
        ui.opts.unload_models_when_training = True
        here, away = ([(name, place) for name in parts] for place in (str(host.device), "cpu"))
        with host.exclusive():
            host.release_encoders()
            assert moves == away
            moves.clear()
            host.generate(STAR)  # a preview; its own prompt moves the text encoder once more
            assert moves[:2] == here and moves[-2:] == away
            moves.clear()
        assert moves == here  # for the web UI's next picture
    finally:
        for part in parts.values():
            del part.to


def test_a_row_is_a_picture_and_its_side(ui, host):
    """The names that cross the seam are those of `host.py`, in the package as the web UI has loaded it."""
    seen = []
    host.generate(STAR, lambda step, steps: seen.extend(host.rows))
    assert {dataclasses.astuple(row) for row in seen} == {dataclasses.astuple(Row(0, uncond)) for uncond in (True, False)}
    assert isinstance(host.encode_prompts(["a"]).rows([0, 0]).context, torch.Tensor) and Conditioning is not type(host.encode_prompts(["a"]))


def test_pictures_of_a_run_with_zero_terminal_snr_ask_for_that_schedule(host):
    def settings(**about):
        return host._job_for(GenerationRequest("a star", **about)).override_settings

    assert settings(zero_terminal_snr=True)["sd_noise_schedule"] == "Zero Terminal SNR"  # A1111, Forge, reForge: modules/shared_options.py
    assert "sd_noise_schedule" not in settings() and settings(literal=False) == {"return_grid": False}
