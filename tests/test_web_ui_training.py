"""Training in A1111, Forge and reForge in miniature: gradients arrive, a run starts from the bare checkpoint, and afterwards all is as it was."""
import importlib
import random
import shutil
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("gradio", reason="a web UI is made of it")

import web_ui
from web_ui.recording import recorded
from web_ui.shelf import fill

CAPTIONS = ("a (star)", "[blue] a:b", "a moon AND a sun", "BREAK it (all:1.4)")
QUICK = dict(
    name="quick", max_steps=5, batch_size=2, resolution=32, bucket_step=8, learning_rate="1e-2", warmup_steps=0, per_layer=False,
    caption_dropout=0, validation_share=0, validation_every=0, preview_every=0, preview_steps=2, checkpoint_every=0,
)  # fmt: skip
LAYER = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Four that differ, with captions that a web UI would read as more than letters."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, caption in enumerate(CAPTIONS):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
    return folder


@pytest.fixture(scope="module", params=web_ui.TREES)
def running(request, tmp_path_factory, pictures):
    """A web UI with the extension for LoRA. `fresh` are the losses of a run before which no picture was drawn."""
    with web_ui.started(request.param, tmp_path_factory.mktemp(request.param), scripts=[web_ui.LORA]) as ui:
        fill(ui)
        ui.pictures = pictures
        networks(ui).available_networks["vivid"] = lora(ui)
        ui.fresh = losses(run(ui))
        yield ui


@pytest.fixture
def ui(running):
    with running.one_test():
        yield running
    networks(running).load_networks([])
    if running.kind != "a1111":
        running.memory.room_for_one = False


def networks(ui):
    """The module of the extension for LoRA."""
    return sys.modules["networks"]


def lora(ui):
    """One that changes UNet and text encoder by more than rounding."""
    generator = torch.Generator().manual_seed(1)
    return {"unet": {LAYER: torch.randn(8, 16, generator=generator)}, "text": {"mix.weight": torch.randn(16, 16, generator=generator)}}


def part(ui, name):
    """A module of the package that the web UI has loaded."""
    return importlib.import_module(f"{type(ui.extension).__module__.rpartition('.')[0]}.{name}")


def run(ui, each=lambda event: None, **changes):
    """The events of a run; nothing encoded is left of another one. `each` is called with every event."""
    shutil.rmtree(ui.host.folders.data, ignore_errors=True)
    trainer = part(ui, "trainer").HypernetworkTrainer(config=QUICK | {"dataset": str(ui.pictures)} | changes)
    found = []
    with ui.host.exclusive():
        for event in trainer.run(host=ui.host, overwrite=True):
            found.append(event)
            each(event)
    return found


def losses(events):
    return [event.loss for event in events if event.kind == "step"]


def plain(ui):
    """The pixels of a picture without anything."""
    return ui.txt2img("a star", steps=2).images[0].tobytes()


class Batch:
    """A fixed one, and the loss of a network on it."""

    def __init__(self, ui, per_layer):
        self.host = host = ui.host
        config = part(ui, "config").read(part(ui, "config").TrainingConfig, {"per_layer": per_layer, "weight_initialization": "KaimingNormal"})
        self.network = part(ui, "networks").new_network(host.unet, config).train().requires_grad_(True)
        self.edit = part(ui, "attention").ResidualEdit(self.network)
        generator = torch.Generator().manual_seed(2)
        self.noisy, self.target = torch.randn(2, 2, 4, 4, 4, generator=generator)
        self.conditioning = host.encode_prompts(["a star", "a ring"])
        self.sizes = [part(ui, "host").PictureSize((32, 32), (0, 0), (32, 32))] * 2
        self.attached = part(ui, "attention").attached

    def loss(self):
        output = self.host.predict(self.noisy, torch.tensor([100, 700]), self.conditioning, self.sizes)
        return (output - self.target).pow(2).mean()

    def gradients(self, checkpointing=False):
        with self.host.training(checkpointing), self.attached(self.host.unet, [self.edit]):
            self.loss().backward()
        return {name: parameter.grad for name, parameter in self.network.named_parameters()}


@pytest.mark.parametrize("checkpoint", ["base", "xl"])
@pytest.mark.parametrize("per_layer", [True, False], ids=["per layer", "per width"])
def test_every_parameter_gets_its_gradient(ui, per_layer, checkpoint):
    """That of the loss: along a random direction it is what two losses differ by."""
    if ui.kind == "reforge" and checkpoint == "xl":
        pytest.skip("this miniature has no XL")
    ui.choose(checkpoint)
    batch = Batch(ui, per_layer)
    gradients = batch.gradients()
    assert len(gradients) == 8 * (64 if per_layer else 2)  # K and V, of two layers each, with weight and bias
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    assert all(gradient.abs().max() > 0 for name, gradient in gradients.items() if name.endswith("weight"))
    direction = {name: torch.randn(gradient.shape, generator=torch.Generator().manual_seed(3)) for name, gradient in gradients.items()}
    moved = []
    with batch.host.training(), batch.attached(batch.host.unet, [batch.edit]), torch.no_grad():
        for sign in (1, -2):
            for name, parameter in batch.network.named_parameters():
                parameter += sign * 1e-3 * direction[name]
            moved.append(batch.loss())
    slope = sum((gradient * direction[name]).sum() for name, gradient in gradients.items())
    torch.testing.assert_close((moved[0] - moved[1]) / 2e-3, slope, rtol=0.02, atol=1e-4)
    assert all(parameter.grad is None for parameter in ui.unet.parameters())


@pytest.mark.parametrize("per_layer", [True, False], ids=["per layer", "per width"])
def test_gradients_with_checkpointing_are_the_plain_ones(ui, per_layer):
    evaluations = []
    first = ui.host.unet.middle_block[1].transformer_blocks[0].norm1
    handle = first.register_forward_hook(lambda *about: evaluations.append(1))
    try:
        batch = Batch(ui, per_layer)
        found = {name: gradient.clone() for name, gradient in batch.gradients().items()}
        assert len(evaluations) == 1
        batch.network.zero_grad()
        again = batch.gradients(checkpointing=True)
    finally:
        handle.remove()
    assert len(evaluations) == 3  # forward, and once more in backward
    largest = max(gradient.abs().max() for gradient in found.values())
    assert all((found[name] - again[name]).abs().max() <= 1e-5 * largest for name in found)


@pytest.mark.parametrize("per_layer", [True, False], ids=["per layer", "per width"])
def test_the_loss_of_a_fixed_batch_falls(ui, per_layer):
    batch = Batch(ui, per_layer)
    optimizer = torch.optim.AdamW(batch.network.parameters(), lr=1e-2)
    found = []
    with batch.host.training(), batch.attached(batch.host.unet, [batch.edit]):
        for _ in range(20):
            optimizer.zero_grad()
            loss = batch.loss()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    assert found[-1] < 0.9 * found[0]


def draw_with(ui, what):
    """A picture that leaves something behind; it is another one than without."""
    bare = plain(ui)
    tags = {"LoRA": "<lora:vivid:1>", "hypernetwork": "<hypernet:oil:1>"}
    ui.opts.token_merging_ratio = 0.5 if what == "token merging" else 0.0
    drawn = ui.txt2img(f"a star{tags.get(what, '')}", steps=2).images[0].tobytes()
    ui.opts.token_merging_ratio = 0.0
    assert (drawn != bare) == (what != "nothing")
    return drawn


@pytest.mark.parametrize("preview_every", [0, 2], ids=["without previews", "with previews"])
@pytest.mark.parametrize("what", ["nothing", "LoRA", "hypernetwork", "token merging"])
def test_a_run_starts_from_the_bare_checkpoint(ui, what, preview_every):
    """Whatever was drawn before: its losses are those of a run before which nothing was."""
    drawn = draw_with(ui, what)
    assert losses(run(ui, preview_every=preview_every)) == ui.fresh
    assert draw_with(ui, what) == drawn


def test_what_another_extension_has_left_on_a1111s_model_goes(ui):
    if ui.kind != "a1111":
        pytest.skip("is about A1111's model")
    sd_model = ui.shared.sd_model
    ui.part("sd_models").apply_token_merging(sd_model, 0.5)
    ui.shared.loaded_hypernetworks.append("something")
    params = SimpleNamespace(enabled=True)
    setattr(ui.unet.input_blocks[1], "__webui_hypertile_params", params)
    try:
        assert losses(run(ui)) == ui.fresh
        assert ui.shared.loaded_hypernetworks == [] and params.enabled is False
    finally:
        delattr(ui.unet.input_blocks[1], "__webui_hypertile_params")


def test_previews_show_the_checkpoint_without_the_last_pictures_lora(ui):
    request = part(ui, "host").GenerationRequest("a star", steps=2, cfg_scale=3.0, width=32, height=32, seed=7)
    bare = ui.host.generate(request)[0].tobytes()
    draw_with(ui, "LoRA")
    with ui.host.training():
        assert ui.host.generate(request)[0].tobytes() == bare


def test_a_text_is_encoded_as_the_checkpoint_does_it_and_a_job_keeps_its_lora(ui):
    bare = ui.encoded("a star")
    with ui.part("call_queue").queue_lock, torch.no_grad():
        networks(ui).load_networks(["vivid"], [1.0], [1.0])
        colourful = ui.encoded("a star")
        assert (colourful - bare).abs().max() > 0.1
        for _ in range(2):
            assert torch.equal(ui.host.encode_prompts(["a star"]).context[0], bare)
            assert torch.equal(ui.encoded("a star"), colourful)


def test_captions_are_taken_letter_by_letter(ui):
    text_encoder = ui.shared.sd_model
    with recorded() as recording:
        run(ui)
    encoder = text_encoder.cond_stage_model if ui.kind == "a1111" else text_encoder.forge_objects.clip.cond_stage_model
    encoder = encoder["encoder"] if ui.kind == "forge" else encoder
    with torch.no_grad():
        said = [encoder(caption, "None") for caption in CAPTIONS]
    seen = [context for call in recording.calls for context in call.context]
    assert len(seen) == 5 * 2
    assert all(any(torch.equal(context[: len(text)], text) for text in said) for context in seen)


def snapshot(ui):
    """All of a UNet that a run might change; its inputs and outputs are looked at by `plain`."""
    root = ui.shared.sd_model.model if ui.kind == "a1111" else ui.unet
    return {
        "parameters": {name: (value.detach().clone(), value.requires_grad, value.grad) for name, value in root.named_parameters()},
        "buffers": {name: value.clone() for name, value in root.named_buffers()},
        "hooks": ui.hooks(),
        "modes": [module.training for module in root.modules()],
        "attributes": [(type(module), {name for name in vars(module) if not name.startswith("network_")}) for module in root.modules()],
        "flags": [{name: vars(module).get(name) for name in ("checkpoint", "use_checkpoint")} for module in root.modules()],
    }  # fmt: skip


def assert_as_before(ui, before, pixels=None):
    after = snapshot(ui)
    assert pixels is None or plain(ui) == pixels
    for name, (value, requires_grad, grad) in after["parameters"].items():
        assert torch.equal(value, before["parameters"][name][0]) and requires_grad == before["parameters"][name][1] and grad is None, name
    assert before["parameters"].keys() == after["parameters"].keys() and before["buffers"].keys() == after["buffers"].keys()
    assert all(torch.equal(value, before["buffers"][name]) for name, value in after["buffers"].items())
    for name in ("hooks", "modes", "attributes", "flags"):
        assert after[name] == before[name], name
    assert not ui.part("call_queue").queue_lock.locked() and ui.state.job == "" and ui.host.rows == ()


@pytest.fixture
def mixed(ui):
    """The UNet's parts are not all in one state: what is only set to a common one afterwards would be noticed."""
    pixels = plain(ui)
    module, parameter = ui.unet.middle_block[0], "middle_block.0.skip_connection"
    other = next(ui.unet.out.parameters())
    module.train()
    other.requires_grad_(False)
    yield SimpleNamespace(before=snapshot(ui), pixels=pixels, parameter=parameter)
    module.eval()
    other = next(ui.unet.out.parameters())
    with torch.inference_mode(other.is_inference()):
        other.requires_grad_(True)


@pytest.mark.parametrize("gradient_checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_after_a_run_all_is_as_before(ui, mixed, gradient_checkpointing):
    found = run(ui, preview_every=2, validation_every=2, validation_share=0.25, gradient_checkpointing=gradient_checkpointing)
    assert found[-1].kind == "finished"
    assert_as_before(ui, mixed.before, mixed.pixels)


class Failure(Exception):
    """Of another extension, within the UNet."""


def failing(ui, number):
    """A hook that lets the UNet fail at its evaluation `number`."""
    calls = []

    def fail(module, inputs, output):
        calls.append(module)
        if len(calls) == number:
            raise Failure

    return ui.host.unet.middle_block[2].register_forward_hook(fail)


@pytest.mark.parametrize("number, preview_every", [(3, 0), (2, 1)], ids=["of a step", "of a preview"])
def test_after_an_error_within_the_unet_all_is_as_before(ui, mixed, number, preview_every):
    handle = failing(ui, number)
    try:
        with pytest.raises(Failure):
            run(ui, preview_every=preview_every)
    finally:
        handle.remove()
    assert_as_before(ui, mixed.before, mixed.pixels)
    assert losses(run(ui)) == ui.fresh


def test_after_a_run_that_was_left_amid_a_step_all_is_as_before(ui, mixed):
    """As a page does that is closed: the generator of events is thrown away."""
    trainer = part(ui, "trainer").HypernetworkTrainer(config=QUICK | {"dataset": str(ui.pictures)})
    with ui.host.exclusive():
        events = trainer.run(host=ui.host, overwrite=True)
        next(event for event in events if event.kind == "step")
        events.close()
    assert_as_before(ui, mixed.before, mixed.pixels)


@pytest.mark.parametrize("button", ["interrupt", "stop_generating"])
def test_the_web_uis_buttons_end_a_run_and_all_is_as_before(ui, mixed, button):
    """In the thread that the tab and REST start; the file is there."""
    read, config = part(ui, "config").read, part(ui, "config").TrainingConfig
    job = ui.extension.jobs.start(read(config, QUICK | {"dataset": str(ui.pictures), "max_steps": 100_000, "preview_every": 3}), overwrite=True)
    while job.last_step is None and job.running:
        job.wait(0.01)
    getattr(ui.state, button)()
    assert job.wait(60) and job.error is None
    assert job.last.kind == "stopped" and 0 < job.last.step < 100_000 and job.path.exists()
    ui.state.interrupted = ui.state.stopping_generation = False
    assert_as_before(ui, mixed.before, mixed.pixels)


def chosen(ui, checkpoint):
    """What the page does at once when another checkpoint is chosen; A1111 and reForge then wait for the queue with the rest."""
    if ui.kind == "forge":
        importlib.import_module("modules_forge.main_entry").checkpoint_change(checkpoint)
    else:
        ui.opts.sd_model_checkpoint = checkpoint


@pytest.mark.parametrize("checkpoint", ["alike", "wide"])
def test_a_checkpoint_that_is_chosen_during_a_run_waits_for_its_end(ui, checkpoint):
    ui.choose(checkpoint)
    wanted = plain(ui)
    ui.choose("base")
    before, pixels = snapshot(ui), plain(ui)
    found = run(ui, lambda event: event.kind == "step" and event.step == 2 and chosen(ui, checkpoint), preview_every=1)
    assert losses(found) == ui.fresh and found[-1].kind == "finished"
    previews = [event for event in found if event.kind == "preview"]
    assert len(previews) == 6 and all(event.pictures for event in previews)
    assert ui.host.model.name == (checkpoint if ui.kind == "forge" else "base")
    assert plain(ui) == wanted  # the next picture is the chosen checkpoint's
    ui.choose("base")
    assert_as_before(ui, before, pixels)


def test_a_picture_that_is_asked_for_during_a_run_waits_for_its_end_and_is_what_it_would_have_been(ui):
    wanted, pictures, found = plain(ui), [], []
    asking = threading.Thread(target=lambda: pictures.append((found[-1].kind, plain(ui), found[-1].kind)))

    def note(event):
        found.append(event)
        if event.kind == "step" and event.step == 2:
            asking.start()
            asking.join(0.2)
            assert asking.is_alive() and not pictures

    assert losses(run(ui, note)) == ui.fresh
    asking.join(60)
    assert pictures == [("step", wanted, "finished")]


def test_previews_change_neither_the_run_nor_the_state_of_chance(ui):
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    found = run(ui, preview_every=1)
    assert losses(found) == ui.fresh
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[2], strict=True))


def test_a_preview_during_a_run_is_the_networks_picture(ui):
    """The last one is what the file gives when it is finished."""
    found = run(ui, preview_every=5, preview_prompts="a star", caption_dropout=0.5, preview_seed=7, preview_cfg_scale=3.0)
    last = Image.open([event for event in found if event.kind == "preview"][-1].pictures[0])
    drawn = ui.txt2img("a star<hypernet:quick:1>", steps=2)
    assert drawn.comments == "" and last.tobytes() == drawn.images[0].tobytes() != plain(ui)


def by_a_picture(ui):
    plain(ui)


def between_devices(ui):
    """As on a graphics card: the weights, made in inference mode, are moved outside it."""
    plain(ui)
    ui.memory.unload()


def by_pictures_and_other_models(ui):
    """Where the memory has room for one model only, each leaves for the next, also while a run draws its previews."""
    ui.memory.unload()
    ui.memory.room_for_one = True
    plain(ui)


@pytest.mark.parametrize("captions", ["fixed", "shuffled"])
@pytest.mark.parametrize("moved", [by_a_picture, between_devices, by_pictures_and_other_models])
def test_weights_are_fit_for_training_however_they_were_moved(ui, mixed, moved, captions):
    """Captions that are shuffled are encoded at each step, which takes the UNet's place in the memory."""
    if ui.kind == "a1111":
        pytest.skip("A1111 does not use inference mode")
    wanted = ui.fresh if captions == "fixed" else losses(run(ui, shuffle_tags=True))
    moved(ui)
    moves = ui.memory.moves
    assert losses(run(ui, preview_every=2, shuffle_tags=captions == "shuffled")) == wanted
    assert_as_before(ui, mixed.before)
    if moved is not by_a_picture:
        assert ui.memory.moves > moves
    pixels = plain(ui)
    moved(ui)
    assert plain(ui) == pixels


def test_a_model_that_was_never_used_is_loaded_for_the_run(tmp_path, running):
    """`fresh` is of such a one, so that its losses are those after a picture, too."""
    assert len(running.fresh) == 5 and running.fresh == losses(run(running))


@pytest.mark.parametrize("checkpoint, words", [
    ("inpainting", "inpainting"), ("flux", "no Stable Diffusion"), ("xl inpainting", "inpainting"), ("xl refiner", "is the SDXL refiner"),
])  # fmt: skip
def test_models_that_cannot_be_trained_on_are_refused_before_anything_changes(ui, checkpoint, words):
    ui.choose(checkpoint)
    before = snapshot(ui)
    with pytest.raises(part(ui, "errors").ModelUnfit, match=words):
        run(ui)
    assert_as_before(ui, before)


def test_on_a1111_lowvram_is_refused(ui):
    if ui.kind != "a1111":
        pytest.skip("is about A1111's flag")
    ui.shared.cmd_opts.lowvram = True
    try:
        with pytest.raises(part(ui, "errors").ConfigError, match="--medvram"), ui.host.training():
            raise AssertionError("within")
    finally:
        ui.shared.cmd_opts.lowvram = False


def test_on_forge_quantised_weights_are_refused_and_all_is_as_before(ui):
    if ui.kind == "a1111":
        pytest.skip("A1111 has none")
    layer = ui.host.unet.out
    weight = layer._parameters["weight"]
    layer._parameters["weight"] = torch.nn.Parameter(weight.detach().to(torch.int8), requires_grad=False)
    try:
        with pytest.raises(part(ui, "errors").ModelUnfit, match="quantised"), ui.host.training():
            raise AssertionError("within")
    finally:
        layer._parameters["weight"] = weight
    assert losses(run(ui)) == ui.fresh
