"""The standalone host, measured against diffusers' own pipelines and the formulas."""
import random
import shutil
import subprocess
import sys
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import hooks
from PIL import Image
from tiny_models import FAMILIES, change_json, make_pipeline

from hypernetworks.embedded import MODEL
from hypernetworks.errors import ConfigError, HostBusy, HypernetworkError, ModelUnfit
from hypernetworks.host import Conditioning, Folders, GenerationRequest, PictureSize, Row
from hypernetworks.hosts.diffusers import DiffusersHost

STAR = GenerationRequest("a large red star on a blue background", "a circle", steps=3, cfg_scale=3.0, width=64, height=64, seed=7)


@pytest.fixture(scope="module")
def embedded():
    return DiffusersHost(device="cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a small model of each family, in the folders of those names."""
    folder = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        make_pipeline(family, context=1024 if family == "sd2" else None).save_pretrained(str(folder / family))
    return folder


def levels(picture):
    return np.asarray(picture).astype(int)


def load_pipeline(folder):
    import diffusers

    pipeline = diffusers.DiffusionPipeline.from_pretrained(str(folder), local_files_only=True).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_constructing_loads_nothing_and_generating_prints_nothing():
    code = """
import random, sys, torch
from hypernetworks.host import GenerationRequest
from hypernetworks.hosts.diffusers import DiffusersHost
host = DiffusersHost(device="cpu")
assert not {"diffusers", "transformers"} & set(sys.modules)
before = torch.random.get_rng_state(), random.getstate()
host.generate(GenerationRequest("a star", steps=1, width=64, height=64))
assert torch.equal(before[0], torch.random.get_rng_state()) and before[1] == random.getstate()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_facts_of_the_embedded_model(embedded):
    facts = embedded.model
    assert (facts.name, facts.family, facts.prediction_type, facts.resolution, facts.latent_factor) == ("embedded", "sd1", "epsilon", 128, 8)
    assert len(facts.hash) == 10
    assert embedded.device == torch.device("cpu") and embedded.dtype == torch.float32
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2  # Stable Diffusion's scaled-linear schedule
    torch.testing.assert_close(embedded.alphas_cumprod, torch.cumprod(1 - beta, 0))


@pytest.mark.parametrize("family", FAMILIES)
def test_family_and_prediction_type_come_from_the_model(models, family):
    facts = DiffusersHost(models / family).model
    assert (facts.family, facts.name) == (family, family)
    assert facts.prediction_type == ("v_prediction" if family == "sd2" else "epsilon")
    assert (facts.resolution, facts.latent_factor) == (16, 2)


def test_the_hash_is_that_of_the_unets_weights(models):
    import hashlib

    data = (models / "sd1" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert DiffusersHost(models / "sd1").model.hash == hashlib.sha256(data).hexdigest()[:10]


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_are_those_of_diffusers_own_pipeline(models, family):
    request = GenerationRequest("a red star", "a blue ring", steps=4, cfg_scale=4.0, width=32, height=16, seed=3)
    expected = load_pipeline(models / family)(
        request.prompt, negative_prompt=request.negative_prompt, num_inference_steps=4, guidance_scale=4.0, width=32, height=16,
        generator=torch.Generator().manual_seed(3)).images[0]
    (picture,) = DiffusersHost(models / family).generate(request)
    assert picture.size == (32, 16) and picture.mode == "RGB"
    assert abs(levels(picture) - levels(expected)).max() <= 1


def test_pictures_of_the_embedded_model_are_those_of_the_pipeline_also_without_guidance(embedded):
    pipeline = load_pipeline(MODEL)
    for scale in (1.0, 5.0):
        request = GenerationRequest(STAR.prompt, steps=3, cfg_scale=scale, width=64, height=128, seed=5)
        expected = pipeline(
            STAR.prompt, num_inference_steps=3, guidance_scale=scale, width=64, height=128, generator=torch.Generator().manual_seed(5))
        assert abs(levels(embedded.generate(request)[0]) - levels(expected.images[0])).max() <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_become_what_the_pipelines_text_encoders_give(models, family):
    prompts = ["a (red:1.3) [star]", "a very long prompt " * 60, ""]
    conditioning = DiffusersHost(models / family).encode_prompts(prompts)
    found = load_pipeline(models / family).encode_prompt(prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    torch.testing.assert_close(conditioning.context, found[0])
    assert conditioning.context.shape[1] == 77 and not conditioning.context.requires_grad
    if family == "sdxl":
        torch.testing.assert_close(conditioning.pooled, found[2])
    else:
        assert conditioning.pooled is None


def test_each_picture_of_a_batch_equals_its_single_run(embedded):
    import dataclasses

    batch = embedded.generate(dataclasses.replace(STAR, count=3))
    singles = [embedded.generate(dataclasses.replace(STAR, seed=STAR.seed + i))[0] for i in range(3)]
    for one, other in zip(batch, singles, strict=True):
        assert abs(levels(one) - levels(other)).max() <= 1
    assert abs(levels(batch[0]) - levels(batch[1])).max() > 50


def test_the_pictures_of_one_job_may_have_prompts_of_their_own(embedded):
    prompts = ("a large blue ring on a red background", "a small star")
    together = embedded.generate(replace(STAR, prompt="", count=2, prompts=prompts))
    for number, prompt in enumerate(prompts):
        (alone,) = embedded.generate(replace(STAR, prompt=prompt, seed=STAR.seed + number))
        assert np.abs(np.asarray(together[number], int) - np.asarray(alone, int)).max() <= 1
    with pytest.raises(ConfigError, match="2 prompts for 3"):
        embedded.generate(replace(STAR, count=3, prompts=prompts))


def test_steps_are_announced_before_the_unet_is_evaluated_and_rows_are_known_then(embedded):
    events = []
    handle = embedded.unet.register_forward_pre_hook(lambda module, inputs: events.append(("evaluated", len(inputs[0]))))
    try:
        embedded.generate(STAR, lambda step, steps: events.append((step, steps, embedded.rows)))
    finally:
        handle.remove()
    announced = [event for i in range(3) for event in ((i, 3, (Row(0, True), Row(0, False))), ("evaluated", 2))]
    assert events == announced
    assert embedded.rows == ()


def test_rows_without_guidance_all_see_the_prompt_and_are_forgotten_after_an_exception(embedded):
    import dataclasses

    seen = []

    def interrupt(step, steps):
        seen.append(embedded.rows)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedded.generate(dataclasses.replace(STAR, cfg_scale=1.0, count=2), interrupt)
    assert seen == [(Row(0, False), Row(1, False))] and embedded.rows == ()


def test_generating_leaves_the_random_state_of_the_process_alone(embedded):
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    embedded.release_encoders()
    embedded.generate(STAR)
    assert torch.equal(before[0], torch.random.get_rng_state()) and before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()


@pytest.mark.parametrize("changes", [dict(width=60), dict(height=0), dict(steps=0), dict(steps=1000)])
def test_a_size_or_number_of_steps_that_cannot_be_is_refused_with_a_sentence(embedded, changes):
    import dataclasses

    with pytest.raises(ConfigError):
        embedded.generate(dataclasses.replace(STAR, **changes))


def test_latents_are_the_autoencoders_distribution_in_the_unets_scale(embedded):
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, logvar = embedded.encode_pictures(pixels)
    vae = load_pipeline(MODEL).vae
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist
    scale = vae.config.scaling_factor
    torch.testing.assert_close(mean, expected.mean * scale)
    torch.testing.assert_close((logvar / 2).exp(), expected.std * scale)
    assert mean.dtype == logvar.dtype == torch.float32 and mean.shape == (2, 4, 8, 8)


def test_a_shifted_autoencoder_is_shifted_both_ways(models, tmp_path):
    shutil.copytree(models / "sd1", tmp_path / "shifted")
    change_json(tmp_path / "shifted" / "vae" / "config.json", shift_factor=0.5)
    plain, shifted = DiffusersHost(models / "sd1"), DiffusersHost(tmp_path / "shifted")
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    (mean, logvar), (moved, same) = plain.encode_pictures(pixels), shifted.encode_pictures(pixels)
    torch.testing.assert_close(moved, mean - 0.5 * 0.18215)
    assert torch.equal(logvar, same)
    assert abs(levels(plain._decode(mean)) - levels(shifted._decode(moved))).max() <= 1


def test_released_encoders_are_gone_and_come_back_the_same():
    host = DiffusersHost()
    before = host.encode_prompts(["a red star"]).context
    gone = [weakref.ref(module) for module in (host._encoders.vae, *host._encoders.text)]
    host.release_encoders()
    assert [ref() for ref in gone] == [None, None]
    assert torch.equal(host.encode_prompts(["a red star"]).context, before)


def test_encoders_that_were_released_leave_the_graphics_card_again_after_a_preview():
    class Parts:
        places = []

        def to(self, device):
            self.places.append(torch.device(device).type)

    host = DiffusersHost(device="cuda")
    host._encoders = Parts()
    with host._encoders_for_a_while():  # nobody has released them
        host._needed_encoders()
    assert Parts.places == ["cuda"]
    host.release_encoders()
    with host._encoders_for_a_while():
        host._needed_encoders()
        host._needed_encoders()
    assert Parts.places[1:] == ["cpu", "cuda", "cuda", "cpu"]


@pytest.mark.parametrize("family", FAMILIES)
def test_predict_is_the_unets_output_and_tells_sdxl_the_sizes(models, family):
    host = DiffusersHost(models / family)
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([3, 800])
    context = torch.randn(2, 77, host.unet.config.cross_attention_dim, generator=generator)
    pooled = torch.randn(2, 48, generator=generator) if family == "sdxl" else None
    sizes = [PictureSize((10, 20), (1, 2), (8, 16)), PictureSize((30, 40), (0, 0), (16, 16))]
    numbers = torch.tensor([[10.0, 20, 1, 2, 8, 16], [30.0, 40, 0, 0, 16, 16]])
    added = None if pooled is None else {"text_embeds": pooled, "time_ids": numbers}
    expected = host.unet(x, t, context, added_cond_kwargs=added).sample
    assert torch.equal(host.predict(x, t, Conditioning(context, pooled), sizes), expected)
    if family == "sdxl":
        assert not torch.equal(host.predict(x, t, Conditioning(context, pooled), sizes[::-1]), expected)


def gradient(host, context):
    context = context.clone().requires_grad_(True)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    loss = host.predict(x, torch.tensor([500]), Conditioning(context), [PictureSize((64, 64), (0, 0), (64, 64))]).square().mean()
    loss.backward()
    return loss.detach(), context.grad


def test_training_freezes_the_unet_and_checkpointing_gives_the_same_gradients(embedded):
    context, recomputed = embedded.encode_prompts(["a star"]).context, []
    block = embedded.unet.down_blocks[0].attentions[0].transformer_blocks[0]
    handle = block.register_forward_pre_hook(lambda module, inputs: recomputed.append(torch.is_grad_enabled()))
    try:
        with embedded.training():
            assert not any(p.requires_grad for p in embedded.unet.parameters()) and not embedded.unet.training
            loss, plain = gradient(embedded, context)
        assert len(recomputed) == 1
        with embedded.training(gradient_checkpointing=True):
            same_loss, checkpointed = gradient(embedded, context)
        assert len(recomputed) == 3
    finally:
        handle.remove()
    assert torch.equal(loss, same_loss) and plain.abs().max() > 0
    torch.testing.assert_close(checkpointed, plain)
    assert all(p.grad is None for p in embedded.unet.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_puts_everything_back_also_after_an_exception(models, checkpointing):
    host = DiffusersHost(models / "sd1")
    unet = host.unet
    first, odd = next(unet.parameters()), unet.mid_block
    unet.requires_grad_(False)
    first.requires_grad_(True)
    odd.train()

    def state():
        return [p.requires_grad for p in unet.parameters()], [m.training for m in unet.modules()], unet.is_gradient_checkpointing, hooks(unet)

    before = state()
    with pytest.raises(KeyboardInterrupt), host.training(checkpointing):
        assert state() != before
        raise KeyboardInterrupt
    assert state() == before


def test_dropout_stays_off_while_checkpointing(tmp_path):
    pipeline = make_pipeline("sd1", dropout=0.5)
    pipeline.save_pretrained(str(tmp_path / "dropout"))
    host = DiffusersHost(tmp_path / "dropout")
    context = torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(0))
    with host.training():
        loss, plain = gradient(host, context)
    with host.training(gradient_checkpointing=True):
        same_loss, checkpointed = gradient(host, context)
    assert torch.equal(loss, same_loss)
    torch.testing.assert_close(checkpointed, plain)


def test_a_preview_within_training_is_the_same_picture(embedded):
    expected = embedded.generate(STAR)[0]
    with embedded.training(gradient_checkpointing=True):
        embedded.release_encoders()
        assert (levels(embedded.generate(STAR)[0]) == levels(expected)).all()


def test_only_one_job_at_a_time_has_the_host(embedded):
    with embedded.exclusive():
        refused = []

        def other():
            with pytest.raises(HostBusy) as raised, embedded.exclusive():
                pass
            refused.append(str(raised.value))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(5)
        assert refused and refused[0].endswith(".")
    with pytest.raises(KeyboardInterrupt), embedded.exclusive():
        raise KeyboardInterrupt
    with embedded.exclusive():
        pass


def test_a_model_loaded_within_inference_mode_can_be_trained_through(models):
    with torch.inference_mode():
        host = DiffusersHost(models / "sd1")
        host.unet  # noqa: B018
    assert not any(p.is_inference() for p in host.unet.parameters())


def test_in_half_precision_the_autoencoder_stays_in_float32(models):
    host = DiffusersHost(models / "sdxl", dtype=torch.bfloat16)
    conditioning = host.encode_prompts(["a star"])
    assert {p.dtype for p in host.unet.parameters()} == {torch.bfloat16} == {conditioning.context.dtype}
    assert {p.dtype for p in host._encoders.vae.parameters()} == {torch.float32}
    assert isinstance(host.generate(GenerationRequest("a", steps=2, width=16, height=16))[0], Image.Image)


def test_a_folder_with_half_precision_files_only_is_read(tmp_path):
    make_pipeline("sd1").save_pretrained(str(tmp_path / "half"), variant="fp16")
    assert DiffusersHost(tmp_path / "half").model.family == "sd1"


def test_any_scheduler_with_a_noise_schedule_gives_the_same_pictures(models, tmp_path):
    from diffusers import EulerDiscreteScheduler

    request = GenerationRequest("a", steps=3, width=16, height=16)
    shutil.copytree(models / "sd1", tmp_path / "euler")
    EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    ).save_pretrained(str(tmp_path / "euler" / "scheduler"))
    index = tmp_path / "euler" / "model_index.json"
    change_json(index, scheduler=["diffusers", "EulerDiscreteScheduler"])
    expected = DiffusersHost(models / "sd1").generate(request)[0]
    assert (levels(DiffusersHost(tmp_path / "euler").generate(request)[0]) == levels(expected)).all()


def test_other_folders_are_refused_before_anything_is_loaded(models, tmp_path):
    with pytest.raises(ModelUnfit, match="There is no model at"):
        DiffusersHost(tmp_path / "nowhere")
    with pytest.raises(ModelUnfit, match="no model_index.json"):
        DiffusersHost(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}')
    with pytest.raises(ModelUnfit, match="is a FluxPipeline; this needs"):
        DiffusersHost(tmp_path)
    (tmp_path / "model_index.json").write_text("[1, 2")
    with pytest.raises(ModelUnfit, match="cannot be read"):
        DiffusersHost(tmp_path)
    shutil.copytree(models / "sd1", tmp_path / "inpainting")
    change_json(tmp_path / "inpainting" / "unet" / "config.json", in_channels=9)
    with pytest.raises(ModelUnfit, match="9 channels"):
        DiffusersHost(tmp_path / "inpainting")
    (tmp_path / "inpainting" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelUnfit, match="no weights in safetensors"):
        DiffusersHost(tmp_path / "inpainting")


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model.safetensors", "vae/config.json", "text_encoder/model.safetensors"])
def test_a_folder_with_a_truncated_file_is_refused_with_a_sentence(models, tmp_path, part):
    shutil.copytree(models / "sd1", tmp_path / "cut")
    data = (tmp_path / "cut" / part).read_bytes()
    (tmp_path / "cut" / part).write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelUnfit, match="The model cut cannot be read"):
        DiffusersHost(tmp_path / "cut").unet  # noqa: B018


def test_folders_can_be_given(tmp_path):
    folders = Folders.below(tmp_path)
    assert DiffusersHost(folders=folders).folders == folders


def test_without_diffusers_the_user_is_told_what_to_install(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HypernetworkError, match="Reading a model needs diffusers and transformers: pip install"):
        DiffusersHost().unet  # noqa: B018
