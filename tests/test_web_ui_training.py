"""Training on A1111, Forge and reForge in miniature: gradients are those of a plain UNet, and nothing is left of it afterwards."""
import copy
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("gradio", reason="a web UI is made of it")

import web_ui
from web_ui.shelf import OIL, fill, network, on
from web_ui.unet import UNetModel

from hypernetworks.attention import ResidualEdit, attached
from hypernetworks.catalog import Catalog
from hypernetworks.embedded import PICTURES
from hypernetworks.files import load
from hypernetworks.host import GenerationRequest, PictureSize

STAR = GenerationRequest("a star", "no dogs", steps=2, cfg_scale=3.0, width=32, height=32, seed=7)
SIZES = [PictureSize((32, 32), (0, 0), (32, 32))] * 2


@pytest.fixture(params=web_ui.TREES)
def ui(request, tmp_path):
    with web_ui.started(request.param, tmp_path) as ui:
        fill(ui)
        ui.choose("base")
        yield ui


@pytest.fixture
def host(ui):
    return ui.host


def error(ui, name):
    """A class of the package that the web UI has loaded."""
    return getattr(sys.modules[f"{type(ui.extension).__module__.rpartition('.')[0]}.errors"], name)


class Question:
    """Noisy latents, times and prompts, and a target."""

    def __init__(self, host):
        generator = torch.Generator().manual_seed(3)
        self.x, self.target = (torch.randn(2, 4, 4, 4, generator=generator) for _ in range(2))
        self.times, self.conditioning = torch.tensor([100, 800]), host.encode_prompts(["a star", "a ring"])

    def loss(self, predict):
        """As a trainer asks for it."""
        return (predict(self.x, self.times, self.conditioning, SIZES) - self.target).pow(2).mean()


def trainable(seed=11):
    made = network("new", (8, 16), seed)
    return made.train().requires_grad_(True)


def gradients(made):
    return {name: parameter.grad.clone() for name, parameter in made.named_parameters()}


def plain_unet(unet):
    """The same weights without anything added in place, and without checkpoints."""
    info = SimpleNamespace(seed=0, width=unet.width, context_width=16, in_channels=4, family="sd1")
    made = UNetModel(info, in_place=False)
    made.load_state_dict({name: value.detach().clone() for name, value in unet.state_dict().items()})
    for part in made.modules():
        for name in ("checkpoint", "use_checkpoint"):
            if hasattr(part, name):
                setattr(part, name, False)
    return made.requires_grad_(False)


def asked_plainly(unet, question, made):
    """The loss on the plain UNet."""
    with attached(unet, [ResidualEdit(made)]):
        return question.loss(lambda x, times, conditioning, sizes: unet(x, times, context=conditioning.context))


def asked(host, question, made, gradient_checkpointing):
    with host.training(gradient_checkpointing), attached(host.unet, [ResidualEdit(made)]):
        loss = question.loss(host.predict)
        loss.backward()
    return loss.detach()


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_gradients_are_those_of_a_plain_unet(ui, host, gradient_checkpointing):
    question, made, reference = Question(host), trainable(), trainable()
    wanted = asked_plainly(plain_unet(ui.unet), question, reference)
    wanted.backward()
    loss = asked(host, question, made, gradient_checkpointing)
    torch.testing.assert_close(loss, wanted.detach())
    found, wanted = gradients(made), gradients(reference)
    assert all(gradient.abs().max() > 0 for gradient in found.values())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-6, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_gradients_are_what_the_loss_does(ui, host, gradient_checkpointing):
    """Along the gradient, by differences."""
    question, made = Question(host), trainable()
    asked(host, question, made, gradient_checkpointing)
    slope = sum(gradient.pow(2).sum() for gradient in gradients(made).values())
    step = 1e-2 / slope.sqrt()
    found = []
    with host.training(gradient_checkpointing), torch.no_grad():
        for sign in (1, -1):
            moved = copy.deepcopy(made)
            for parameter, original in zip(moved.parameters(), made.parameters(), strict=True):
                parameter += sign * step * original.grad
            with attached(host.unet, [ResidualEdit(moved)]):
                found.append(question.loss(host.predict))
    torch.testing.assert_close((found[0] - found[1]) / (2 * step), slope, rtol=2e-2, atol=0)


def test_several_steps_go_on_as_on_a_plain_unet(ui, host):
    question, made, reference = Question(host), trainable(), trainable()
    optimizers = [torch.optim.SGD(one.parameters(), 0.05) for one in (made, reference)]
    plain = plain_unet(ui.unet)
    losses = []
    with host.training(True), attached(host.unet, [ResidualEdit(made)]):
        for _ in range(3):
            for optimizer in optimizers:
                optimizer.zero_grad()
            pair = question.loss(host.predict), asked_plainly(plain, question, reference)
            losses.append([loss.item() for loss in pair])
            for loss, optimizer in zip(pair, optimizers, strict=True):
                loss.backward()
                optimizer.step()
    for ours, theirs in losses:
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert losses[2][0] < losses[0][0]


def test_outside_of_training_the_web_uis_own_model_gives_no_gradient(ui, host):
    """Which is why all this is there: ldm's checkpoints swallow it in silence, Forge's weights and sums in place stop it."""
    question, made = Question(host), trainable()
    try:
        with attached(host.unet, [ResidualEdit(made)]):
            question.loss(host.predict).backward()
    except RuntimeError:
        assert ui.kind != "a1111"
        return
    assert ui.kind == "a1111"
    assert any(parameter.grad is None for parameter in made.parameters())


def state(unet):
    """What training may change about a UNet, and has to leave as it was."""
    flags = {name: parameter.requires_grad for name, parameter in unet.named_parameters()}
    modes = {name: part.training for name, part in unet.named_modules()}
    own = {name: {key: value for key, value in vars(part).items() if not key.startswith("_")} for name, part in unet.named_modules()}
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in unet.modules())
    return flags, modes, own, hooks


def values(unet):
    return {name: value.detach().clone() for name, value in unet.state_dict().items()}


def mixed(unet):
    """Flags and modes that are not all the same."""
    with torch.inference_mode(next(unet.parameters()).is_inference()):
        for number, parameter in enumerate(unet.parameters()):
            parameter.requires_grad_(number % 3 != 0)
    unet.middle_block.train()


def leave(host, how, gradient_checkpointing):
    """Enters training, works, and leaves in one of the ways that there are."""
    question, made = Question(host), trainable()

    def work():
        with host.training(gradient_checkpointing), attached(host.unet, [ResidualEdit(made)]):
            question.loss(host.predict).backward()
            yield
            if how == "error":
                raise ZeroDivisionError

    run = work()
    next(run)
    if how == "closed":
        run.close()
    elif how == "error":
        with pytest.raises(ZeroDivisionError):
            next(run)
    else:
        assert list(run) == []


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("how", ["end", "error", "closed"])
def test_afterwards_the_unet_is_as_it_was(ui, host, how, gradient_checkpointing):
    mixed(ui.unet)
    before, weights = state(ui.unet), values(ui.unet)
    leave(host, how, gradient_checkpointing)
    assert state(ui.unet) == before
    for name, value in values(ui.unet).items():
        assert torch.equal(value, weights[name])
    assert all(parameter.grad is None for parameter in ui.unet.parameters())


def test_within_training_the_unet_is_frozen_and_rests(ui, host):
    mixed(ui.unet)
    with host.training():
        assert not any(parameter.requires_grad for parameter in host.unet.parameters())
        assert not any(part.training for part in host.unet.modules())
        assert not any(tensor.is_inference() for tensor in (*host.unet.parameters(), *host.unet.buffers()))


def test_pictures_are_the_same_before_and_behind_training(ui, host):
    tagged = "a star<hypernet:oil:0.5>"
    before = ui.txt2img(tagged, enable_hr=True, steps=2).latents[0]
    leave(host, "end", True)
    assert torch.equal(ui.txt2img(tagged, enable_hr=True, steps=2).latents[0], before)


@pytest.mark.parametrize("room_for_one", [False, True])
def test_previews_between_two_steps_disturb_neither(ui, host, room_for_one):
    """On Forge drawing moves models in and out, in inference mode."""
    if ui.kind != "a1111":
        ui.memory.room_for_one = room_for_one
    mixed(ui.unet)
    question, made = Question(host), trainable()
    asked(host, question, made, False)
    wanted, alone = gradients(made), host.generate(STAR)[0].tobytes()
    before = state(ui.unet)
    for parameter in made.parameters():
        parameter.grad = None
    with host.training():
        assert host.generate(STAR)[0].tobytes() == alone
        with attached(host.unet, [ResidualEdit(made)]):
            question.loss(host.predict).backward()
            assert host.generate(STAR)[0].tobytes() != alone
        assert not any(parameter.requires_grad for parameter in host.unet.parameters())
    for name, gradient in gradients(made).items():
        torch.testing.assert_close(gradient, wanted[name])
    assert state(ui.unet) == before


def test_what_the_last_picture_had_is_off_while_training(ui, host):
    """A LoRA in Forge's weights, merged tokens; in A1111 also its own hypernetworks, and LoRA by its extension."""
    bare = values(ui.unet)
    if ui.kind == "a1111":
        asked_for = []
        networks = ModelModule = ModuleType("networks")
        networks.load_networks = asked_for.append
        extension = ModuleType("extra_networks_lora")
        extension.networks = ModelModule
        lora = type("ExtraNetworkLora", (), {"__module__": "extra_networks_lora", "name": "lora", "activate": lambda *a: None, "deactivate": lambda *a: None})
        ui.part("extra_networks").register_extra_network(lora())
        sys.modules["extra_networks_lora"] = extension
        ui.shared.loaded_hypernetworks.append("old")
        ui.part("sd_models").apply_token_merging(ui.shared.sd_model, 0.5)
        ui.part("sd_unet").current_unet = object()
        setattr(ui.unet.middle_block[1], "__webui_hypertile_params", SimpleNamespace(enabled=True))
        try:
            with host.training():
                assert asked_for == [[]] and ui.shared.loaded_hypernetworks == []
                assert ui.shared.sd_model.applied_token_merged_ratio == 0 and ui.part("sd_unet").current_unet is None
                assert getattr(ui.unet.middle_block[1], "__webui_hypertile_params").enabled is False  # noqa: B009
        finally:
            del sys.modules["extra_networks_lora"], ui.part("extra_networks").extra_network_registry["lora"]
        return
    sd_model = ui.shared.sd_model
    sd_model.forge_objects.unet = sd_model.forge_objects.unet.clone()
    sd_model.forge_objects.unet.model_options["transformer_options"]["tome"] = 0.5
    if ui.kind == "forge":
        name = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
        sd_model.forge_objects.unet.lora_patches["style.safetensors"] = {name: torch.ones_like(bare[name.partition(".")[2]])}
        ui.memory.load([sd_model.forge_objects.unet])
        assert not torch.equal(values(ui.unet)[name.partition(".")[2]], bare[name.partition(".")[2]])
    with host.training():
        assert all(torch.equal(value, bare[name]) for name, value in values(host.unet).items())
        assert "tome" not in sd_model.forge_objects.unet.model_options["transformer_options"]


class Quantised(nn.Parameter):
    """As bitsandbytes' and GGUF's are: a class of their own."""


@pytest.mark.parametrize("make", [
    lambda weight: Quantised(weight), lambda weight: nn.Parameter(torch.zeros(4, 2, dtype=torch.uint8), requires_grad=False)
], ids=["class", "bytes"])  # fmt: skip
def test_quantised_weights_are_refused_and_nothing_is_changed(tmp_path, make):
    with web_ui.started("forge", tmp_path) as ui:
        ui.choose("base")
        part = ui.unet.middle_block[1].transformer_blocks[0].attn1.to_k
        with torch.inference_mode():
            part._parameters["weight"] = make(part.weight.detach().clone())
        before = state(ui.unet)
        with pytest.raises(error(ui, "ModelUnfit"), match="quantised"), ui.host.training():
            pass
        assert state(ui.unet) == before


@pytest.mark.parametrize("kind, checkpoint", [(kind, name) for kind in web_ui.TREES for name in ("inpainting", "xl inpainting") if (kind, name) != ("reforge", "xl inpainting")])
def test_models_for_inpainting_are_refused(tmp_path, kind, checkpoint):
    with web_ui.started(kind, tmp_path) as ui:
        ui.choose(checkpoint)
        with pytest.raises(error(ui, "ModelUnfit"), match="inpainting"), ui.host.training():
            pass


def test_a_run_on_another_kind_of_model_ends_with_a_sentence(ui):
    ui.choose("flux")
    job = ui.extension.jobs.start(config(ui))
    assert job.wait(60) and "is no Stable Diffusion 1, 2 or XL" in job.error


def test_with_lowvram_there_is_a_sentence(tmp_path):
    with web_ui.started("a1111", tmp_path, lowvram=True) as ui:
        ui.choose("base")
        with pytest.raises(error(ui, "ConfigError"), match="--medvram instead"), ui.host.training():
            pass


def config(ui, **changes):
    """A short run, in the package that the web UI has loaded."""
    package = sys.modules[f"{type(ui.extension).__module__.rpartition('.')[0]}.config"]
    about = {
        "name": "new", "dataset": str(PICTURES / "striped"), "max_steps": 3, "batch_size": 2, "resolution": 32, "preview_every": 2, "preview_steps": 2,
        "preview_prompts": "a (star)", "validation_every": 0, "checkpoint_every": 0, "warmup_steps": 0, "learning_rate": "1e-2", "per_layer": False,
    }  # fmt: skip
    return package.read(package.TrainingConfig, about | changes)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_a_whole_run_gives_a_network_that_a_tag_can_use(ui, gradient_checkpointing):
    before = state(ui.unet)
    job = ui.extension.jobs.start(config(ui, gradient_checkpointing=gradient_checkpointing))
    assert job.wait(120) and job.error is None and job.last.kind == "finished"
    assert load(job.path).step == 3 and job.path == ui.networks.resolve() / "new.safetensors"
    assert job.losses.points() and [preview.path.exists() for preview in job.previews] == [True] * len(job.previews) and job.previews
    assert not ui.part("call_queue").queue_lock.locked() and state(ui.unet) == before
    bare, changed = (ui.txt2img(f"a star{tag}", steps=2) for tag in ("", "<hypernet:new>"))
    assert changed.comments == "" and not torch.equal(bare.latents[0], changed.latents[0])


def test_the_web_uis_interruption_stops_a_run_and_saves(ui):
    jobs = ui.extension.jobs
    job = jobs.start(config(ui, max_steps=1000, preview_every=0))
    while job.last_step is None and job.running:
        job.wait(0.05)
    ui.state.interrupt()
    assert job.wait(60) and job.error is None and job.last.kind == "stopped" and job.path.exists()
    assert Catalog(ui.networks).names() and not ui.part("call_queue").queue_lock.locked()


def test_reload_ui_keeps_a_run_that_is_going_on(ui):
    job = ui.extension.jobs.start(config(ui, max_steps=1000, preview_every=0))
    while job.last_step is None and job.running:
        job.wait(0.05)
    ui.reload()
    try:
        assert ui.extension.jobs.current is job and job.running
        seen = job.last_step.step
        while job.last_step.step == seen and job.running:
            job.wait(0.05)
    finally:
        job.stop()
    assert job.wait(60) and job.error is None and job.last.kind == "stopped"


def test_what_a_trained_network_does_is_what_plain_hooks_do(ui, host):
    """Within training a second network may be on, as a preview of something else would."""
    question = Question(host)
    with host.training(), attached(host.unet, [ResidualEdit(*on(OIL, 0.5))]), torch.no_grad():
        found = question.loss(host.predict)
    plain = plain_unet(ui.unet)
    with torch.no_grad(), attached(plain, [ResidualEdit(*on(OIL, 0.5))]):
        torch.testing.assert_close(found, question.loss(lambda x, times, conditioning, sizes: plain(x, times, context=conditioning.context)))
