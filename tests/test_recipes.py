"""Options of loss, noise, pictures and optimizers in whole runs on the embedded model."""
import dataclasses
import importlib.machinery
import math
import shutil
import sys
import types

import numpy
import pytest
import torch
from PIL import Image
from tiny_models import make_pipeline
from training_runs import equal, losses, weights

from hypernetworks import files
from hypernetworks.attention import network_widths
from hypernetworks.batches import Batches
from hypernetworks.checkpoint import RunFolder
from hypernetworks.config import TrainingConfig, read
from hypernetworks.embedded import PICTURES
from hypernetworks.errors import AccessRefused, ConfigError, DatasetError, NameTaken, TrainingFailed
from hypernetworks.host import Folders, GenerationRequest
from hypernetworks.hosts.diffusers import DiffusersHost
from hypernetworks.hosts.samplers import sampler as make_sampler
from hypernetworks.networks import new_network
from hypernetworks.noise import zero_terminal_snr
from hypernetworks.objective import Objective
from hypernetworks.plan import generator_for
from hypernetworks.repeats import read_pictures
from hypernetworks.run import Run
from hypernetworks.trainer import HypernetworkTrainer

QUICK = dict(
    name="quick", dataset=str(PICTURES / "striped"), max_steps=4, batch_size=2, preview_every=0, validation_every=0, checkpoint_every=0,
    per_layer=False, target_layers=("attn2",), warmup_steps=0,
)


def trainer(**changes):
    return HypernetworkTrainer(config=QUICK | changes)


def events(one, host, **how):
    return list(one.run(host=host, **how))


def warnings(found):
    return [event.message for event in found if event.kind == "warning"]


def batches(host, **changes):
    config = read(TrainingConfig, QUICK | changes)
    made = Batches(host, config, read_pictures(config.dataset))
    list(made.prepare())
    return made


def stopped_and_resumed(host, tmp_path, **changes):
    """(the losses and the network of a run that stopped after two steps and went on, those of the same run in one piece)"""
    whole = trainer(**changes)
    whole_losses = losses(events(whole, host))
    host.folders = Folders.below(tmp_path / "again")
    first, begun = trainer(**changes), []
    for event in first.run(host=host):
        begun.append(event)
        if event.kind == "step" and event.step == 2:
            first.stop()
    second = trainer(**changes)
    rest = events(second, host, resume=True)
    return losses(begun) + losses(rest), second.hypernetwork, whole_losses, whole.hypernetwork


# --- loss and noise -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [
    {"noise_offset": 0.1, "pyramid_noise": 0.5, "input_perturbation": 0.1, "loss": "huber", "huber_delta": 0.1, "huber_schedule": "snr"},
    {"loss": "log_cosh", "loss_weighting": "debiased", "timestep_distribution": "logit_normal", "timestep_from": 0.2, "ema_decay": 0.9},
    {"clip_norm": 0.5, "clip_value": 0.01, "clip_schedule": "1:2, 0.5", "rate_schedule": "restarts", "rate_cycles": 2, "optimizer": "Adamax"},
], ids=["noise", "loss and average", "clipping and restarts"])
def test_a_resumed_run_is_bit_for_bit_the_run_that_never_stopped(host, tmp_path, changes):
    found, network, whole_losses, whole = stopped_and_resumed(host, tmp_path, **changes)
    assert found == whole_losses and equal(weights(network), weights(whole))


def test_batches_hold_the_noise_that_was_asked_for(host):
    plain, offset = batches(host), batches(host, noise_offset=0.5)
    difference = offset.at(1, 0).noise - plain.at(1, 0).noise
    assert torch.allclose(difference, difference[:, :, :1, :1].expand_as(difference)) and difference.abs().min() > 1e-4
    assert torch.equal(offset.at(1, 0).latents, plain.at(1, 0).latents) and torch.equal(offset.at(1, 0).timesteps, plain.at(1, 0).timesteps)


def test_a_perturbed_input_holds_more_noise_than_the_target(host):
    made = batches(host, input_perturbation=0.2)
    batch, objective = made.at(1, 0), Objective(made.config, host)
    a = host.alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)
    extra = (objective.noisy(batch) - a.sqrt() * batch.latents) / (1 - a).sqrt() - batch.noise
    draws = torch.stack([torch.randn(batch.noise.shape[1:], generator=generator_for(0, 1, number, "perturbation")) for number in range(2)])
    assert torch.allclose(extra, 0.2 * draws, atol=1e-4)
    exact = Objective(read(TrainingConfig, QUICK | {"loss_weighting": "none"}), host)
    assert float(exact.loss(batch.noise, batch)) == 0  # the noise alone is to be found


def test_validation_is_measured_with_plain_noise_whatever_the_training_has(host):
    plain, other = batches(host), batches(host, noise_offset=0.5, pyramid_noise=0.5)
    assert torch.equal(plain.validation()[0].noise, other.validation()[0].noise)


def test_zero_terminal_snr_is_refused_by_a_model_that_predicts_the_noise(host):
    with pytest.raises(ConfigError, match="zero_terminal_snr"):
        events(trainer(zero_terminal_snr=True), host)
    assert not host.folders.data.exists()


class Velocity:
    """Facts of a model that predicts v."""

    prediction_type = "v_prediction"


def test_with_zero_terminal_snr_the_last_timestep_is_noise_alone_and_its_loss_a_number(host):
    made = batches(host)

    class Host:
        alphas_cumprod, device, client_paths, model = host.alphas_cumprod, host.device, True, Velocity

    batch = made.at(1, 0)
    batch.timesteps = torch.tensor([len(host.alphas_cumprod) - 1] * 2)
    objective = Objective(read(TrainingConfig, QUICK | {"zero_terminal_snr": True, "loss_weighting": "none"}), Host)
    assert torch.equal(objective.noisy(batch), batch.noise)
    assert float(objective.loss(torch.zeros_like(batch.noise), batch)) == pytest.approx(float(batch.latents.pow(2).mean()), rel=1e-5)
    assert objective.warnings == [] and "last timestep" in Objective(read(TrainingConfig, QUICK | {"zero_terminal_snr": True}), Host).warnings[0]


@pytest.fixture(scope="module")
def velocity_model(tmp_path_factory):
    """A small model that predicts v, with random weights."""
    folder = tmp_path_factory.mktemp("velocity")
    make_pipeline("sd2", context=1024).save_pretrained(str(folder / "sd2"))
    return folder / "sd2"


def test_a_model_that_predicts_v_is_trained_and_drawn_with_zero_terminal_snr(velocity_model, tmp_path):
    host = DiffusersHost(velocity_model, Folders.below(tmp_path), device="cpu")
    values = dict(zero_terminal_snr=True, loss_weighting="none", resolution=64, preview_every=4, preview_steps=4, preview_prompts="a star", validation_every=2)
    drawn, generate = [], host.generate
    host.generate = lambda request, on_step: drawn.append(request) or generate(request, on_step)
    found = events(trainer(**values), host)
    assert len(losses(found)) == 4 and warnings(found) == [] and found[-1].kind == "finished"
    assert all(math.isfinite(event.validation_loss) for event in found if event.kind == "validation")
    assert len(drawn) == 2 and all(request.zero_terminal_snr for request in drawn)


def test_the_standalone_sampler_uses_the_schedule_that_is_trained_with(velocity_model, tmp_path):
    host = DiffusersHost(velocity_model, Folders.below(tmp_path), device="cpu")
    sampler = make_sampler(host._loaded().scheduler, zero_terminal_snr=True)
    sampler.set_timesteps(5)
    assert int(sampler.timesteps[0]) == 999 and sampler.config.prediction_type == "v_prediction"
    torch.testing.assert_close(sampler.alphas_cumprod, zero_terminal_snr(host.alphas_cumprod), atol=1e-5, rtol=1e-4)
    plain = GenerationRequest("a star", steps=4, cfg_scale=1, width=64, height=64)
    pictures = [host.generate(dataclasses.replace(plain, zero_terminal_snr=flag))[0].tobytes() for flag in (False, True, False)]
    assert pictures[0] == pictures[2] != pictures[1]


def fourth_power(predicted, target):
    return (predicted - target) ** 4


def test_a_users_own_loss_is_trained_with(host):
    made = batches(host)
    batch = made.at(1, 0)
    objective = Objective(read(TrainingConfig, QUICK | {"loss_function": f"{__name__}.fourth_power", "loss_weighting": "none"}), host)
    predicted = torch.randn_like(batch.noise)
    assert float(objective.loss(predicted, batch)) == pytest.approx(float(((predicted - batch.noise) ** 4).mean()), rel=1e-5)
    assert len(losses(events(trainer(loss_function=f"{__name__}.fourth_power", max_steps=1), host))) == 1


def test_a_page_that_others_can_reach_runs_no_code_of_the_machine(host, monkeypatch):
    monkeypatch.setattr(type(host), "client_paths", False)
    with pytest.raises(AccessRefused, match="loss_function"):
        events(trainer(loss_function=f"{__name__}.fourth_power"), host)
    assert not host.folders.data.exists()


# --- masks ----------------------------------------------------------------------------------------------------------------------


def half_masked(folder):
    """The bundled pictures, each with a mask of its left half."""
    shutil.copytree(PICTURES / "striped", folder)
    for path in list(folder.glob("*.png")):
        mask = numpy.zeros((128, 128), numpy.uint8)
        mask[:, :64] = 255
        Image.fromarray(mask).save(folder / f"{path.stem}-mask.png")
    return str(folder)


def test_half_a_mask_lets_the_other_half_teach_nothing(host, tmp_path):
    made = batches(host, dataset=half_masked(tmp_path / "masked"), masks="files", flip=True)
    assert len(made.dataset.pictures) == 16
    objective, mirrored = Objective(made.config, host), set()
    for step in range(1, 13):
        batch = made.at(step, 0)
        predicted = torch.zeros_like(batch.noise, requires_grad=True)
        objective.loss(predicted, batch).backward()
        for sample, gradient in zip(made._samples(step, 0), predicted.grad, strict=True):
            right, left = gradient[..., 8:], gradient[..., :8]
            taught, untaught = (right, left) if sample.flip else (left, right)
            assert (untaught == 0).all() and (taught != 0).any()
            mirrored.add(sample.flip)
    assert mirrored == {True, False}
    assert made.held_out and all((batch.area[..., :8] == 1).all() and (batch.area[..., 8:] == 0).all() for batch in made.validation())


def test_a_share_of_samples_is_shown_without_its_mask(host, tmp_path):
    made = batches(host, dataset=half_masked(tmp_path / "masked"), masks="files", unmasked_share=0.25, batch_size=4)
    whole = [bool((area == 1).all()) for step in range(1, 51) for area in made.at(step, 0).area]
    assert 0.15 < sum(whole) / len(whole) < 0.35
    assert not any((batch.area == 1).all() for batch in made.validation())


def test_outside_its_mask_a_picture_may_stay_as_the_model_has_it(host, tmp_path):
    values = dict(dataset=half_masked(tmp_path / "masked"), masks="files", unmasked_weight=0.2, masked_prior_weight=0.5, loss_weighting="none")
    made = batches(host, **values)
    batch, objective = made.at(1, 0), Objective(made.config, host)
    predicted, kept = torch.randn_like(batch.noise), torch.randn_like(batch.noise)
    inside = ((predicted - batch.noise) ** 2 * batch.area).mean()
    outside = ((predicted - kept) ** 2 * (1 - batch.area)).mean()
    assert objective.keeps(batch) and float(objective.loss(predicted, batch, kept)) == pytest.approx(float(inside + 0.5 * outside), rel=1e-5)


def first_loss(host, made, rows):
    """The loss of the first step as the model alone has it, of the samples that `rows` chooses from the batch."""
    batch = made.at(1, 0)
    with host.training(), torch.no_grad():
        predicted = host.predict(Objective(made.config, host).noisy(batch), batch.timesteps, batch.conditioning, batch.sizes)
    errors = (predicted - batch.noise).pow(2)
    if batch.area is not None:
        errors = errors * batch.area
    return float((errors.mean((1, 2, 3)) * rows(batch)).mean())


def test_an_untrained_network_keeps_what_it_is_to_keep(host, tmp_path):
    values = dict(regularization=str(PICTURES / "striped"), regularization_target="model", loss_weighting="none", batch_size=6)
    made = batches(host, **values)
    assert 0 < int(made.at(1, 0).regular.sum()) < 6
    wanted = first_loss(host, made, lambda batch: (~batch.regular).float())
    assert losses(events(trainer(**values, max_steps=1), host)) == [pytest.approx(wanted, rel=1e-4)]
    values = dict(dataset=half_masked(tmp_path / "masked"), masks="files", masked_prior_weight=3.0, loss_weighting="none")
    wanted = first_loss(host, batches(host, **values), lambda batch: torch.ones(len(batch.latents)))
    assert losses(events(trainer(**values, max_steps=1, name="masked"), host)) == [pytest.approx(wanted, rel=1e-4)]


def test_whether_the_models_own_prediction_is_needed_is_known_without_looking_at_the_device(host):
    made = batches(host, regularization=str(PICTURES / "striped"), regularization_target="model", batch_size=6)
    batch = made.at(1, 0)
    regular = batch.regular.tolist()
    batch.regular = batch.regular.to("meta")  # which cannot be asked for values
    objective = Objective(made.config, host)
    assert objective.keeps(batch)
    assert [objective.keeps(batch.part(row, row + 1)) for row in range(6)] == regular and len(set(regular)) == 2


def test_runs_that_keep_the_models_own_predictions_can_be_resumed(host, tmp_path):
    folder = half_masked(tmp_path / "masked")
    values = dict(dataset=folder, masks="both", masked_prior_weight=1.0, regularization=str(PICTURES / "striped"), regularization_target="model")
    found, network, whole_losses, whole = stopped_and_resumed(host, tmp_path, **values, gradient_checkpointing=True)
    assert found == whole_losses and equal(weights(network), weights(whole))


def test_a_file_in_half_precision_goes_on_in_full_from_its_run(host, tmp_path):
    found, network, whole_losses, whole = stopped_and_resumed(host, tmp_path, file_precision="fp16")
    assert found == whole_losses and equal(weights(network), weights(whole))
    saved = files.load(host.folders.networks / "quick.safetensors")
    assert all(torch.equal(value.half().float(), weights(saved)[name]) for name, value in weights(network).items())


def test_masks_change_a_run_and_it_can_be_resumed(host, tmp_path):
    folder = half_masked(tmp_path / "masked")
    found, network, whole_losses, whole = stopped_and_resumed(host, tmp_path, dataset=folder, masks="files", unmasked_weight=0.1)
    assert found == whole_losses and equal(weights(network), weights(whole))
    host.folders = Folders.below(tmp_path / "plain")
    plain = events(trainer(dataset=folder), host)
    assert losses(plain) != whole_losses and "-mask.png" in warnings(plain)[0]


def test_a_picture_with_a_damaged_mask_is_left_out_by_name(host, tmp_path):
    folder = tmp_path / "masked"
    half_masked(folder)
    damaged = sorted(folder.glob("*-mask.png"))[0]
    damaged.write_bytes(b"no picture")
    found = events(trainer(dataset=str(folder), masks="files", max_steps=1), host)
    assert any(damaged.name in message and "was left out" in message for message in warnings(found))


# --- regularisation and repeats ---------------------------------------------------------------------------------------------------


def test_every_second_sample_is_a_regularisation_picture_with_its_own_caption_and_weight(host, tmp_path):
    shutil.copytree(PICTURES / "striped", tmp_path / "regular" / "1_shape")
    for text in (tmp_path / "regular" / "1_shape").glob("*.txt"):
        text.unlink()
    values = dict(regularization=str(tmp_path / "regular"), regularization_weight=0.25, caption_template="[name], [filewords]", caption_dropout=0.0)
    made = batches(host, batch_size=4, **values)
    regular = [picture for picture in made.training if picture.regularization]
    assert len(regular) == 16 and made.picture_count == 16 and not any(picture.regularization for picture in made.held_out)
    shown = []
    for index in range(made.batches_per_epoch):
        samples = made._samples(index + 1, 0)
        pictures = [made.training[sample.picture] for sample in samples]
        shown += pictures
        assert made.at(index + 1, 0).weights.tolist() == [0.25 if picture.regularization else 1.0 for picture in pictures]
        captions = [made._caption(picture, index + 1, sample.number) for picture, sample in zip(pictures, samples, strict=True)]
        assert all(caption.startswith("quick, ") != picture.regularization for caption, picture in zip(captions, pictures, strict=True))
    kept = sum(picture.regularization for picture in shown)
    assert abs(kept - len(shown) / 2) <= 2
    assert not any("quick" not in prompt for prompt in [line.prompt for line in made.preview_lines()])


def test_regularisation_weighs_in_the_loss(host, tmp_path):
    made = batches(host, regularization=str(PICTURES / "striped"), regularization_weight=0.5, loss_weighting="none")
    objective = Objective(made.config, host)
    batch = next(batch for step in range(1, 30) if len(set((batch := made.at(step, 0)).weights.tolist())) == 2)
    errors = batch.noise.pow(2).mean((1, 2, 3))
    assert float(objective.loss(torch.zeros_like(batch.noise), batch)) == pytest.approx(float((errors * batch.weights).mean()), rel=1e-5)


def test_runs_with_regularisation_and_repeats_can_be_resumed(host, tmp_path):
    shutil.copytree(PICTURES / "striped", tmp_path / "pictures" / "3_striped")
    values = dict(dataset=str(tmp_path / "pictures"), regularization=str(PICTURES / "striped"), regularization_weight=0.5, crops=2)
    found, network, whole_losses, whole = stopped_and_resumed(host, tmp_path, **values)
    assert found == whole_losses and equal(weights(network), weights(whole))


def test_generators_take_no_regularisation_pictures_and_missing_folders_are_said(host):
    with pytest.raises(ConfigError, match="regularization"):
        events(trainer(kind="generator", regularization="somewhere"), host)
    with pytest.raises(DatasetError, match="There is no folder"):
        events(trainer(regularization="/nowhere at all"), host)


# --- what is made and kept ----------------------------------------------------------------------------------------------------------


def test_a_network_for_some_blocks_has_pairs_for_their_layers_only(host):
    one = trainer(per_layer=True, blocks=("middle", "output"), max_steps=1)
    events(one, host)
    keys = files.describe(host.folders.networks / "quick.safetensors").keys
    every = keys_of_every_block(host)
    assert set(keys) == {key for key in every if not key.startswith("down_blocks")} and 0 < len(keys) < len(every)
    with pytest.raises(ConfigError, match="per_layer"):
        events(trainer(blocks=("middle",), name="by width"), host)


@pytest.mark.parametrize("per_layer, parts, wanted", [
    (False, ("48", "128"), lambda key, width: width != 96),
    (True, ("up_blocks", "96"), lambda key, width: width == 96 or key.startswith("up_blocks")),
    (True, ("mid_block.attentions.0.transformer_blocks.0.attn2",), lambda key, width: key.startswith("mid_block")),
])  # fmt: skip
def test_a_network_may_be_for_some_widths_or_layers_only(host, per_layer, parts, wanted):
    layers = ("attn2",) if len(parts) == 1 else ("attn1", "attn2")
    every = network_widths(host.unet, layers, per_layer)
    made = new_network(host.unet, read(TrainingConfig, QUICK | {"per_layer": per_layer, "target_layers": layers, "layer_filter": parts}))
    assert made.widths == {key: width for key, width in every.items() if wanted(key, width)} and 0 < len(made.widths) < len(every)


@pytest.mark.parametrize("per_layer, part", [(False, "77"), (False, "up_blocks"), (True, "up_blocks.9"), (True, "1")])
def test_a_layer_that_is_not_there_is_named(host, per_layer, part):
    with pytest.raises(ConfigError, match=f"cannot be '{part}'.*the widths are"):
        new_network(host.unet, read(TrainingConfig, QUICK | {"per_layer": per_layer, "layer_filter": (part,)}))


def keys_of_every_block(host):
    return new_network(host.unet, read(TrainingConfig, QUICK | {"per_layer": True})).keys


@pytest.mark.parametrize("options, named", [
    ({"optimizer_arguments": "beta=3"}, "beta"), ({"optimizer_arguments": "betas=(2, 0.9)"}, "2"), ({"optimizer": "Muon"}, "biases"),
    ({"optimizer_arguments": "capturable=True"}, "does not fit"),
])  # fmt: skip
def test_an_optimizer_that_does_not_fit_is_refused_before_anything_is_encoded(host, options, named):
    run, seen = trainer(**options).run(host=host), []
    with pytest.raises(ConfigError, match=named):
        seen += run
    assert seen == [] and not (host.folders.data / "latents").exists()


def test_the_newest_checkpoints_are_kept(host):
    events(trainer(checkpoint_every=1, checkpoints_kept=2), host)
    folder = RunFolder(host.folders.runs, "quick")
    assert sorted(path.name for path in (folder.path / "checkpoints").iterdir()) == ["step-000003.safetensors", "step-000004.safetensors"]
    assert folder.load_state()["step"] == 4


# --- clipping and the average -------------------------------------------------------------------------------------------------------


def one_step(host, tmp_path, name, **changes):
    """How far the weights move in one step of plain descent at rate 1: the gradient that was let through."""
    host.folders = Folders.below(tmp_path / name)
    about = dict(optimizer="SGD", learning_rate="1.0", rate_schedule="constant", max_steps=1, weight_initialization="KaimingUniform", clip_norm=0)
    one, fresh = trainer(**about | changes), trainer(**about | {"learning_rate": "0"})
    events(one, host)
    host.folders = Folders.below(tmp_path / f"{name} fresh")
    events(fresh, host)
    before, after = weights(fresh.hypernetwork), weights(one.hypernetwork)
    return torch.cat([(before[name] - after[name]).flatten() for name in before])


def test_gradients_are_clipped_by_norm_and_by_value_and_over_time(host, tmp_path):
    whole = one_step(host, tmp_path, "whole")
    norm = float(whole.norm())
    assert torch.allclose(one_step(host, tmp_path, "norm", clip_norm=norm / 2), whole / 2, atol=1e-6, rtol=1e-3)
    limit = float(whole.abs().max()) / 3
    assert torch.allclose(one_step(host, tmp_path, "value", clip_value=limit), whole.clamp(-limit, limit), atol=1e-6, rtol=1e-3)
    scheduled = one_step(host, tmp_path, "scheduled", clip_norm=norm / 2, clip_schedule="0.5:1, 1")
    assert torch.allclose(scheduled, whole / 4, atol=1e-6, rtol=1e-3)
    assert torch.equal(one_step(host, tmp_path, "off", clip_norm=norm / 2, clip_schedule="0"), whole)


def test_the_file_holds_the_average_and_the_weights_stand_beside_it(host):
    one = trainer(ema_decay=0.9, learning_rate="1e-2", rate_schedule="constant", checkpoint_every=1)
    seen, found = [], []
    for event in one.run(host=host):
        found.append(event)
        if event.kind == "step":
            seen.append(weights(one.hypernetwork))
    averaged, raw = files.load(host.folders.networks / "quick.safetensors"), files.load(host.folders.networks / "quick-raw.safetensors")
    wanted = {name: torch.zeros_like(value) for name, value in seen[0].items()}
    start = weights(new_network(host.unet, read(TrainingConfig, QUICK)))
    for name in wanted:
        value = start[name]
        for step, after in enumerate(seen, 1):
            kept = min(0.9, (1 + step) / (10 + step))
            value = kept * value + (1 - kept) * after[name]
        wanted[name] = value
    assert all(torch.allclose(weights(averaged)[name], wanted[name], atol=1e-6) for name in wanted)
    assert equal(weights(raw), seen[-1]) and (averaged.name, raw.name) == ("quick", "quick-raw")
    assert equal(weights(one.hypernetwork), weights(averaged)) and "quick.safetensors and quick-raw.safetensors" in found[-1].message
    checkpoint = files.load(RunFolder(host.folders.runs, "quick").checkpoint_path(2))
    assert not equal(weights(checkpoint), seen[1])  # it is of the average, too


def test_validation_and_previews_show_the_average_and_change_nothing(host, tmp_path):
    plain = trainer(ema_decay=0.9)
    events(plain, host)
    host.folders = Folders.below(tmp_path / "again")
    watched = trainer(ema_decay=0.9, validation_every=1, preview_every=2, preview_steps=2, preview_prompts="a red star")
    events(watched, host)
    assert equal(weights(plain.hypernetwork), weights(watched.hypernetwork))


def test_the_average_alone_where_that_is_asked_for_and_it_can_be_looked_at_on_the_way(host):
    one = trainer(ema_decay=0.9, ema_save_both=False, learning_rate="1e-2", rate_schedule="constant")
    seen = []
    for event in one.run(host=host):
        if event.kind == "step":
            plain = weights(one.hypernetwork)
            with one.shown():
                seen.append(weights(one.hypernetwork))
            assert equal(weights(one.hypernetwork), plain) and not equal(seen[-1], plain)
    assert [path.name for path in host.folders.networks.glob("*.safetensors")] == ["quick.safetensors"]
    assert equal(weights(files.load(host.folders.networks / "quick.safetensors")), seen[-1])


def test_somebody_elses_raw_file_is_never_overwritten_unasked(host):
    raw = host.folders.networks / "quick-raw.safetensors"
    raw.parent.mkdir(parents=True)
    raw.write_bytes(b"mine")
    with pytest.raises(NameTaken, match="quick-raw"):
        events(trainer(ema_decay=0.9), host)
    assert raw.read_bytes() == b"mine"
    events(trainer(ema_decay=0.9, max_steps=1), host, overwrite=True)
    assert files.load(raw).step == 1


# --- optimizers -----------------------------------------------------------------------------------------------------------------


def test_another_optimizer_goes_on_from_the_weights_and_says_so(host):
    events(trainer(max_steps=2), host)
    found = events(trainer(max_steps=3, optimizer="Adamax"), host, resume=True)
    assert losses(found) and any("The optimizer was AdamW and is Adamax now" in message for message in warnings(found))


@pytest.mark.parametrize("changes, words", [
    ({"optimizer": "AdamWW"}, "AdamW"), ({"clip_schedule": "often"}, "Clipping over time"), ({"learning_rate": "fast"}, "Learning rate"),
    ({"optimizer_arguments": "import os"}, "Optimizer arguments"), ({"timestep_from": 1.0}, "timestep_from"), ({"loss_function": "nothing"}, "Own loss"),
])
def test_options_that_cannot_be_are_refused_before_anything_is_encoded(host, tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        events(trainer(**changes), host)
    assert not list(tmp_path.iterdir())


class TwoModes(torch.optim.SGD):
    """A stand-in for schedule-free optimizers: the weights to use are half of those to train."""

    def train(self):
        self._scale(2.0, True)

    def eval(self):
        self._scale(0.5, False)

    @torch.no_grad()
    def _scale(self, factor, training):
        for group in self.param_groups:
            if group.get("train_mode", True) != training:
                group["train_mode"] = training
                for weight in group["params"]:
                    weight.mul_(factor)


def test_a_schedule_free_optimizers_weights_to_use_are_shown_and_saved_and_those_to_train_go_on(host, tmp_path, monkeypatch):
    module = types.ModuleType("schedulefree")
    module.__spec__, module.AdamWScheduleFree = importlib.machinery.ModuleSpec("schedulefree", None), TwoModes
    monkeypatch.setattr(TwoModes, "__module__", "schedulefree")
    monkeypatch.setitem(sys.modules, "schedulefree", module)
    values = dict(
        optimizer="AdamWScheduleFree", optimizer_arguments="lr=0.01", learning_rate="0.01", rate_schedule="constant",
        weight_initialization="KaimingUniform",
    )  # fmt: skip
    one, seen, found = trainer(**values, validation_every=2, checkpoint_every=2), [], []
    for event in one.run(host=host):
        found.append(event)
        if event.kind == "step":
            seen.append(weights(one.hypernetwork))
    assert warnings(found) == []
    saved = files.load(host.folders.networks / "quick.safetensors")
    assert all(torch.equal(value, 0.5 * seen[-1][name]) for name, value in weights(saved).items())
    folder = RunFolder(host.folders.runs, "quick")
    assert equal(folder.load_state()["weights"], seen[-1]) and equal(weights(one.hypernetwork), weights(saved))
    assert all(torch.equal(value, 0.5 * seen[1][name]) for name, value in weights(files.load(folder.checkpoint_path(2))).items())
    host.folders = Folders.below(tmp_path / "again")
    found_losses, network, whole_losses, whole = stopped_and_resumed(host, tmp_path / "more", **values)
    assert found_losses == whole_losses and equal(weights(network), weights(whole))
    with pytest.raises(ConfigError, match="ema_decay"):
        events(trainer(**values, ema_decay=0.9, name="averaged twice"), host)
    assert "without a schedule" in warnings(events(trainer(**values | {"rate_schedule": "cosine"}, max_steps=1, name="scheduled"), host))[0]


@pytest.mark.parametrize("module, name", [
    ("schedulefree", "AdamWScheduleFree"), ("prodigyopt", "Prodigy"), ("dadaptation", "DAdaptAdam"), ("pytorch_optimizer", "pytorch_optimizer.Lion"),
])
def test_with_a_packages_optimizer_a_run_can_be_resumed_bit_for_bit(host, tmp_path, module, name):
    pytest.importorskip(module)
    found, network, whole_losses, whole = stopped_and_resumed(host, tmp_path, optimizer=name, rate_schedule="constant")
    assert found == whole_losses and equal(weights(network), weights(whole))


# --- ways back --------------------------------------------------------------------------------------------------------------------


def exploding(monkeypatch, at, times=1, loss=float("nan")):
    """Makes the loss of training step `at` what it should not be, `times` times, and ruins the weights as such a step does."""
    left = [times]
    honest = Objective.loss

    def spoiled(self, predicted, batch, kept=None):
        found = honest(self, predicted, batch, kept)
        if torch.is_grad_enabled() and spoiled.step == at and left[0]:
            left[0] -= 1
            return found * loss
        return found

    spoiled.step = 0
    train_step = Run._train_step

    def counted(self):
        spoiled.step = self.step
        return train_step(self)

    monkeypatch.setattr(Objective, "loss", spoiled)
    monkeypatch.setattr(Run, "_train_step", counted)


def test_a_run_whose_loss_is_no_number_goes_back_bit_for_bit_and_on_at_half_the_rate(host, tmp_path, monkeypatch):
    values = dict(max_steps=6, validation_every=2, rate_schedule="constant", learning_rate="1e-3")
    kept = []
    one = trainer(**values)
    for event in one.run(host=host):
        if event.kind == "step" and event.step in (2, 3):
            kept.append(weights(one.hypernetwork))
    host.folders = Folders.below(tmp_path / "again")
    exploding(monkeypatch, at=4)
    two, found, at_return = trainer(**values), [], None
    for event in two.run(host=host):
        found.append(event)
        if event.kind == "warning":
            at_return = weights(two.hypernetwork)
    assert equal(at_return, kept[0])  # those of step 2, the last that a later step's loss has shown to be good
    (message,) = warnings(found)
    assert "not a number at step 4: back to step 2, and on at 0.5 of the rate" in message
    steps = [(event.step, event.rate) for event in found if event.kind == "step"]
    assert steps == [(step, pytest.approx(rate)) for step, rate in [(1, 1e-3), (2, 1e-3), (3, 1e-3), (3, 5e-4), (4, 5e-4), (5, 5e-4), (6, 5e-4)]]
    assert found[-1].kind == "finished"
    assert [row.step for row in RunFolder(host.folders.runs, "quick").rows() if row.loss is not None] == [1, 2, 3, 4, 5, 6]


def test_an_exploding_loss_goes_back_too(host, monkeypatch):
    exploding(monkeypatch, at=8, loss=1e4)
    found = events(trainer(max_steps=9, batch_size=8, validation_every=4), host)
    assert "times what it was at step 8: back to step 4" in warnings(found)[0] and found[-1].kind == "finished"


def test_after_three_ways_back_the_run_ends_with_the_best_weights(host, monkeypatch):
    exploding(monkeypatch, at=4, times=99)
    one, validated, kept = trainer(max_steps=6, validation_every=1, learning_rate="1e-3"), {}, {}
    found = []
    for event in one.run(host=host):
        found.append(event)
        if event.kind == "validation" and event.step in (1, 2):
            validated.setdefault(event.step, event.validation_loss)
            kept.setdefault(event.step, weights(one.hypernetwork))
    told = warnings(found)
    assert [message.split(" of the rate")[0].rpartition(" ")[2] for message in told[:3]] == ["0.5", "0.25", "0.125"]
    assert "ends with the best weights" in told[3] and len(told) == 4 and found[-1].kind == "stopped"
    best = found[-1].step
    assert best in (1, 2) and validated[best] == min(validated.values())
    assert equal(weights(files.load(found[-1].path)), kept[best]) and files.load(found[-1].path).step == best


def test_a_run_that_never_came_to_anything_leaves_no_file(host, monkeypatch):
    exploding(monkeypatch, at=1, times=99)
    with pytest.raises(TrainingFailed, match="not a number at step 1, at 0.125 of the rate too"):
        events(trainer(), host)
    assert not list(host.folders.networks.glob("*"))


def test_without_ways_back_the_run_ends_at_once(host, monkeypatch):
    exploding(monkeypatch, at=3)
    with pytest.raises(TrainingFailed, match="not a number at step 3. What was saved"):
        events(trainer(rollbacks=0, checkpoint_every=1), host)


def test_a_run_that_went_back_behind_its_checkpoint_is_resumed_from_there_at_the_halved_rate(host, monkeypatch):
    exploding(monkeypatch, at=4)
    one = trainer(max_steps=6, validation_every=2, checkpoint_every=3, rate_schedule="constant", learning_rate="1e-3")
    found = []
    for event in one.run(host=host):
        found.append(event)
        if event.kind == "warning":
            break  # as if killed
    state = RunFolder(host.folders.runs, "quick").load_state()
    assert state["step"] == 2 and state["recovery"] == (0.5, 1)
    assert not list((RunFolder(host.folders.runs, "quick").path / "checkpoints").iterdir())  # that of step 3 was given up
    rest = events(trainer(max_steps=6, rate_schedule="constant", learning_rate="1e-3"), host, resume=True)
    assert [(event.step, event.rate) for event in rest if event.kind == "step"] == [(step, pytest.approx(5e-4)) for step in (3, 4, 5, 6)]
    slower = events(trainer(max_steps=7, rate_schedule="constant", learning_rate="2e-4"), host, resume=True)
    assert [event.rate for event in slower if event.kind == "step"] == [pytest.approx(2e-4)]  # what is asked now counts
