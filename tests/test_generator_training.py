"""The trainer with generators and with low-rank weights, on the embedded model: what is learned, kept, refused, and that the public sketch runs."""
import shutil

import pytest
import torch
from training_runs import losses

import hypernetworks
from hypernetworks.attention import LowRankEdit, attached
from hypernetworks.config import TrainingConfig, read
from hypernetworks.embedded import PICTURES, shapes
from hypernetworks.embedded.make_pictures import make_pictures
from hypernetworks.errors import ConfigError, DatasetError, ModelUnfit, NotBound
from hypernetworks.generator_files import load_generator
from hypernetworks.group_batches import GroupBatches
from hypernetworks.groups import read_groups
from hypernetworks.host import Conditioning
from hypernetworks.losses import add_noise
from hypernetworks.low_rank import LowRankWeights
from hypernetworks.objective import Objective
from hypernetworks.trainer import HypernetworkTrainer

SMALL = dict(embedding_dim=32, hidden_dim=48, basis_size=4, depth=1)
QUICK = dict(
    name="family", kind="generator", max_steps=3, batch_size=2, preview_every=0, validation_every=0, checkpoint_every=0, warmup_steps=0,
    learning_rate="2e-3", validation_share=0.0, encoder_steps=2, **SMALL,
)


@pytest.fixture(scope="module")
def styles(tmp_path_factory):
    """Three folders of captioned pictures, each in a style of its own."""
    folder = tmp_path_factory.mktemp("styles")
    for name in ("striped", "sepia", "dotted"):
        make_pictures(folder / "all" / name, shapes.STYLES[name])
        for picture in sorted((folder / "all" / name).glob("*.png"))[4:]:
            picture.unlink()
    return folder / "all"


def trainer(**changes):
    return HypernetworkTrainer(config=QUICK | changes)


def events(one, styles, host, **how):
    return list(one.run(styles, host, **how))


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def prepared(host, styles, kinds, tasks=(), **changes):
    batches = GroupBatches(host, read(TrainingConfig, QUICK | changes), read_groups(styles), kinds, tasks)
    list(batches.prepare())
    return batches


def test_the_public_sketch_runs_as_it_is_written(host, styles):
    hypernetwork = hypernetworks.Hypernetwork(target_layers=["attn1", "attn2"], embedding_dim=768, hidden_dim=1024)
    with pytest.raises(NotBound):
        hypernetwork.generate_weights(hypernetworks.generator.Condition.none())
    config = {"learning_rate": 1e-4, "batch_size": 4, "max_epochs": 100, "target_layers": ["attn1", "attn2"]}
    one = hypernetworks.HypernetworkTrainer(hypernetwork, config=config)
    found = []
    for event in one.run(styles, host):
        found.append(event)
        if len(losses(found)) == 2:
            one.stop()
    assert found[-1].kind == "stopped" and found[-1].step == 2 and found[-1].path.exists()
    assert all(loss > 0 for loss in losses(found)) and len(hypernetwork.layers) == 56  # 14 attention layers of 4 projections
    assert one.hypernetwork is hypernetwork


def test_a_generator_learns_and_its_file_gives_the_same_weights(host, styles):
    one = trainer(max_steps=30, batch_size=4, validation_every=30, validation_share=0.34, conditions="image", learning_rate="1e-2")
    found = events(one, styles, host)
    before, after = [event.validation_loss for event in found if event.kind == "validation"]
    assert after < 0.95 * before  # pictures of a style that was not trained on
    kept = load_generator(found[-1].path)
    assert equal(kept, one.hypernetwork) and kept.step == 30
    assert kept.metadata["base_model_hash"] == host.model.hash and kept.metadata["dataset_size"] == "12"


def test_every_parameter_of_the_generator_gets_a_gradient(host, styles):
    network = hypernetworks.Hypernetwork(conditions=("text", "image", "task"), tasks=("dotted", "sepia", "striped"), **SMALL)
    one = HypernetworkTrainer(network, {**QUICK, "max_steps": 1, "condition_dropout": 0.2})
    events(one, styles, host)
    for pair in network.decoder.parameters():
        pair.data.add_(0.01)  # B is zero at first, and with it the gradient of what comes before
    reached = set()
    for kind in network.structure.conditions:
        batches = prepared(host, styles, (kind,), network.structure.tasks, batch_size=6, condition_dropout=0.2)
        network.zero_grad()
        network.requires_grad_(True)
        batch = batches.at(1, 0)
        edit = LowRankEdit(network(batch.condition))
        noisy = add_noise(batch.latents, batch.noise, host.alphas_cumprod[batch.timesteps])
        with host.training(), attached(host.unet, [edit]):
            host.predict(noisy, batch.timesteps, batch.conditioning, batch.sizes).square().mean().backward()
        reached |= {name for name, value in network.named_parameters() if value.grad is not None and value.grad.abs().sum() > 0}
    assert reached == {name for name, _ in network.named_parameters()}


def test_checkpointed_gradients_are_the_plain_ones(host, styles):
    network = hypernetworks.Hypernetwork(conditions=("image",), **SMALL).bind(host.unet)
    for value in network.decoder.parameters():
        value.data.add_(0.01)
    batch = prepared(host, styles, ("image",)).at(1, 0)
    noisy = add_noise(batch.latents, batch.noise, host.alphas_cumprod[batch.timesteps])
    found = []
    for checkpointing in (False, True):
        network.zero_grad()
        edit = LowRankEdit(network(batch.condition))
        with host.training(checkpointing), attached(host.unet, [edit]):
            host.predict(noisy, batch.timesteps, batch.conditioning, batch.sizes).square().mean().backward()
        found.append([value.grad.clone() for value in network.parameters() if value.grad is not None])
    assert len(found[0]) == len(found[1]) > 0
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-9)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(host, styles):
    whole = trainer(name="whole", max_steps=6)
    all_losses = losses(events(whole, styles, host))
    first = trainer(name="halves", max_steps=6, checkpoint_every=3)
    for event in (run := first.run(styles, host)):
        if event.kind == "checkpoint":
            break
    run.close()
    second = trainer(name="halves", max_steps=6, checkpoint_every=3)
    rest = losses(events(second, styles, host, resume=True))
    assert rest == all_losses[3:] and equal(second.hypernetwork, whole.hypernetwork)


def test_a_reference_is_never_the_picture_itself_and_is_of_its_style(host, styles):
    batches = prepared(host, styles, ("image",), batch_size=4)
    latents = {picture.path: batches.reference_latents.get(picture)[0] for picture in batches.training}
    for step in range(1, 6):
        batch = batches.at(step, 0)
        for sample, reference in zip(batches._samples(step, 0), batch.condition.image, strict=True):
            picture = batches.training[sample.picture]
            shown = [path for path, latent in latents.items() if torch.equal(latent, reference)]
            assert len(shown) == 1 and shown[0] != picture.path and shown[0].parent == picture.path.parent


def test_conditions_at_training_are_those_at_generation(host, styles):
    from PIL import Image

    from hypernetworks.conditioning import condition_of_picture, condition_of_text

    batches = prepared(host, styles, ("text",), batch_size=2, condition_dropout=0.0)
    batch = batches.at(1, 0)
    captions = [batches.training[sample.picture].caption for sample in batches._samples(1, 0)]
    expected = torch.cat([condition_of_text(host, caption).text for caption in captions])
    torch.testing.assert_close(batch.condition.text, expected, rtol=1e-5, atol=1e-5)
    images = prepared(host, styles, ("image",))
    picture = images.training[0]
    stored = images.reference_latents.get(picture)[0]
    torch.testing.assert_close(stored, condition_of_picture(host, Image.open(picture.path)).image[0], rtol=1e-4, atol=1e-4)


def test_conditions_and_captions_are_dropped_as_often_as_asked(host, styles):
    batches = prepared(host, styles, ("task",), ("dotted", "sepia", "striped"), batch_size=8, condition_dropout=0.2, caption_dropout=0.0)
    empty = host.encode_prompts([""]).context[0]
    dropped = both = total = 0
    for step in range(1, 26):
        batch = batches.at(step, 0)
        without = [torch.equal(row, empty) for row in batch.conditioning.context]
        both += sum(without)
        dropped += int(batch.condition.dropped.sum())
        assert all(flag for flag, bare in zip(batch.condition.dropped, without, strict=True) if bare)
        total += len(without)
    assert 0.3 < dropped / total < 0.5 and 0.12 < both / total < 0.28  # 0.4 and 0.2 of 200


def test_the_encoder_is_taught_once_before_the_first_step(host, styles):
    def taught(found):
        return [event.step for event in found if event.message == "Teaching the encoder"]

    first = trainer(max_steps=1)
    found = events(first, styles, host)
    assert taught(found) == [1, 2] and [event.kind for event in found].index("step") > len(taught(found))
    assert taught(events(HypernetworkTrainer(first.hypernetwork, {**QUICK, "max_steps": 2}), styles, host, overwrite=True)) == []
    assert taught(events(trainer(max_steps=2), styles, host, resume=True)) == []
    for without in ({"conditions": "task"}, {"conditions": "text"}, {"encoder_steps": 0}):
        assert taught(events(trainer(name="without", max_steps=1, **without), styles, host, overwrite=True)) == []
    assert taught(events(trainer(name="one", max_steps=1), styles / "sepia", host)) == []  # a single group has nothing to be told from


@pytest.mark.parametrize("options, learns", [
    ({}, False), ({"encoder_rate": 0.1}, True), ({"encoder_steps": 0}, True), ({"conditions": "text", "encoder_steps": 2}, True),
])  # fmt: skip
def test_what_the_encoder_was_taught_stays_unless_it_is_to_learn_on(host, styles, options, learns):
    one, kept = trainer(conditions=options.pop("conditions", "image"), **options), None
    for event in one.run(styles, host):
        if event.kind == "step" and event.step == 1:
            kept = {name: value.clone() for name, value in one.hypernetwork.state_dict().items()}
    changed = {name for name, value in one.hypernetwork.state_dict().items() if not value.equal(kept[name])}
    assert ("encoder.mlp.0.weight" in changed) is learns
    assert any(name.startswith("decoder.basis") for name in changed)
    if not learns:
        assert not [name for name in changed if name.startswith("encoder.adapter")]


def test_a_run_can_be_cancelled_while_the_encoder_is_taught(host, styles):
    one, found = trainer(encoder_steps=100), []
    for event in one.run(styles, host):
        found.append(event)
        if event.message == "Teaching the encoder":
            one.cancel()
    assert found[-1].kind == "cancelled" and found[-2].step == 1 and not (host.folders.networks / "family.safetensors").exists()


def test_pairs_are_two_pictures_of_one_group(host, styles):
    batches = prepared(host, styles, ("image",))
    group_of = {picture.path: picture.group for picture in batches.training}
    latents = {picture.path: batches.reference_latents.get(picture)[0] for picture in batches.training}

    def shown(latent):
        (path,) = [path for path, known in latents.items() if torch.equal(latent, known)]
        return path

    seen = set()
    for step in range(4):
        first, second = ([shown(latent) for latent in side] for side in batches.pairs(step))
        assert all(a != b and group_of[a] == group_of[b] for a, b in zip(first, second, strict=True))
        assert len({group_of[path] for path in first}) == len(first) == 3
        seen.add((*first, *second))
    assert len(seen) == 4  # others in every step
    assert all(a.equal(b) for a, b in zip(batches.pairs(1), batches.pairs(1), strict=True))


def test_tasks_are_the_folders(host, styles):
    one = trainer(conditions="task", max_steps=1)
    events(one, styles, host)
    assert one.hypernetwork.structure.tasks == ("dotted", "sepia", "striped")
    again = HypernetworkTrainer(
        hypernetworks.Hypernetwork(conditions=("task",), tasks=("striped",), **SMALL), {**QUICK, "name": "other"}
    )
    with pytest.raises(ConfigError, match="dotted"):
        events(again, styles, host)


def test_tasks_keep_the_numbers_that_the_file_gives_them(host, own_styles):
    options = dict(conditions="task", condition_dropout=0.0, optimizer_arguments="weight_decay=0.0")
    events(trainer(**options), own_styles, host)
    shutil.rmtree(host.folders.runs / "family")
    shutil.rmtree(own_styles / "dotted")
    before = load_generator(host.folders.networks / "family.safetensors").encoder.adapters["task"].weight
    one = trainer(**options | {"conditions": "text", "max_steps": 6})  # what the file can be told counts, not what is asked
    events(one, own_styles, host, resume=True)
    after = one.hypernetwork.encoder.adapters["task"].weight
    assert one.hypernetwork.structure.tasks == ("dotted", "sepia", "striped")
    assert [before[number].equal(after[number]) for number in range(3)] == [True, False, False]
    (own_styles / "sepia").rename(own_styles / "etching")
    shutil.rmtree(host.folders.runs / "family")
    with pytest.raises(ConfigError, match="knows no task 'etching'"):
        events(trainer(**options), own_styles, host, resume=True)


def test_previews_are_drawn_for_references(host, styles):
    found = events(trainer(preview_every=3, preview_steps=2, conditions="image"), styles, host)
    previews = [event for event in found if event.kind == "preview"]
    assert len(previews) == 2 and all(path.exists() for path in previews[-1].pictures)


def test_what_cannot_be_is_refused(host, styles, tmp_path):
    with pytest.raises(ConfigError, match="rank"):
        events(trainer(rank=64), styles, host)
    with pytest.raises(ConfigError, match="pt"):
        events(trainer(also_pt=True, per_layer=False), styles, host)
    with pytest.raises(ConfigError, match="Linear"):
        HypernetworkTrainer(torch.nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="conditions"):
        trainer(conditions="smell")


def test_a_generator_of_another_model_is_not_trained_on(host, styles):
    from tiny_models import make_unet

    network = hypernetworks.Hypernetwork(conditions=("image",), **SMALL).bind(make_unet("sd2", 64))
    with pytest.raises(ModelUnfit):
        events(HypernetworkTrainer(network, QUICK), styles, host)


def test_low_rank_weights_are_an_ordinary_lora(host):
    weights = LowRankWeights.new(host.unet, rank=2, seed=3)
    conditioning = Conditioning(torch.randn(2, 77, 128))
    noisy, timesteps = torch.randn(2, 4, 16, 16), torch.tensor([10, 700])
    with torch.no_grad():
        bare = host.predict(noisy, timesteps, conditioning, [])
        with attached(host.unet, [LowRankEdit(weights.weights())]):
            assert torch.equal(host.predict(noisy, timesteps, conditioning, []), bare)  # B is zero
    one = HypernetworkTrainer(weights, {"name": "lora", "max_steps": 20, "batch_size": 4, "learning_rate": "3e-3", "warmup_steps": 0,
                                        "preview_every": 0, "validation_every": 20, "checkpoint_every": 0})
    found = list(one.run(PICTURES / "striped", host))
    before, after = [event.validation_loss for event in found if event.kind == "validation"]
    assert after < before
    from safetensors.torch import load_file

    stored = load_file(found[-1].path)
    assert len(stored) == 3 * len(weights.names)
    name = weights.names[0]
    down, up = (stored[f"lora_unet_{name.replace('.', '_')}.lora_{part}.weight"].float() for part in ("down", "up"))
    trained_down, trained_up = weights.weights()[name]
    torch.testing.assert_close(up @ down, (trained_up @ trained_down)[0], rtol=5e-3, atol=1e-4)


def test_low_rank_weights_of_several_conditions_are_refused():
    with pytest.raises(ConfigError, match="one condition"):
        LowRankWeights({"layer": (torch.zeros(2, 4, 8), torch.zeros(2, 8, 4))})


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def own_styles(styles, tmp_path):
    """A copy of the styles that a test may change."""
    return shutil.copytree(styles, tmp_path / "own")


def test_a_damaged_companion_takes_a_picture_out_of_the_references_and_is_named(host, own_styles):
    kept, *others = sorted((own_styles / "sepia").glob("*.png"))
    for path in others:
        truncate(path)
    batches = prepared(host, own_styles, ("image",))
    assert {picture.group for picture in batches.training} == {"dotted", "striped"}
    assert all(any(path.name in warning for warning in batches.warnings) for path in others)


def test_a_generator_for_texts_learns_from_what_is_left_of_a_damaged_folder(host, own_styles):
    for style in own_styles.iterdir():
        for path in sorted(style.glob("*.png"))[2:]:
            path.unlink()
        truncate(min(style.glob("*.png")))
    found = events(trainer(conditions="text"), own_styles, host)
    assert found[-1].kind == "finished" and len(losses(found)) == 3


def test_folders_without_two_whole_pictures_are_refused_in_a_sentence(host, own_styles):
    for style in own_styles.iterdir():
        for path in sorted(style.glob("*.png"))[1:]:
            truncate(path)
    with pytest.raises(DatasetError, match="No folder is left with two pictures"):
        events(trainer(conditions="image"), own_styles, host)


def test_copies_of_one_picture_beside_another_one_are_refused_where_one_of_them_is_held_out(host, styles, tmp_path):
    first, second, *_ = sorted((styles / "sepia").glob("*.png"))
    (folder := tmp_path / "copies").mkdir()
    for number in range(8):
        shutil.copy(second if number else first, folder / f"{number}.png")
    with pytest.raises(DatasetError, match="No folder is left with two pictures"):  # which one is held out depends on the seed
        for seed in range(16):
            prepared(host, folder, ("image",), validation_share=0.1, seed=seed).at(1, 0)


@pytest.mark.parametrize("pictures, options", [(4, {"validation_every": 3}), (3, {"validation_share": 0.4})])
def test_a_task_is_trained_and_validated_where_a_folder_keeps_a_single_picture(host, own_styles, pictures, options):
    for style in own_styles.iterdir():
        for path in sorted(style.glob("*.png"))[pictures:]:
            path.unlink()
    share = {"validation_share": TrainingConfig.validation_share} | options
    found = events(trainer(conditions="task", max_steps=6, **share), own_styles, host)
    assert found[-1].kind == "finished" and len(losses(found)) == 6
    assert any(event.validation_loss for event in found) is ("validation_every" in options)


def test_a_run_that_goes_back_to_its_beginning_keeps_what_the_encoder_learned_before_it(host, styles, monkeypatch):
    honest, spoiled = Objective.loss, []

    def loss(self, predicted, batch, kept=None):
        found = honest(self, predicted, batch, kept)
        if torch.is_grad_enabled() and not spoiled:
            spoiled.append(True)
            return found * float("nan")
        return found

    monkeypatch.setattr(Objective, "loss", loss)
    one, returned = trainer(ema_decay=0.9), False
    for event in one.run(styles, host):
        if event.message == "Teaching the encoder":
            taught = {name: weight.clone() for name, weight in one.hypernetwork.encoder.state_dict().items()}
        if "back to step 0" in event.message:
            returned = True
            assert all(torch.equal(weight, taught[name]) for name, weight in one.hypernetwork.encoder.state_dict().items())
    assert returned and event.kind == "finished"
    raw = load_generator(host.folders.networks / "family-raw.safetensors")
    assert not equal(load_generator(event.path), raw)
