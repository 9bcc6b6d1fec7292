"""Training runs on the embedded model: what is learned, what is kept, and that a run can stop and go on as if nothing had happened."""
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from models import hooks
from safetensors import safe_open
from training_runs import equal, losses, weights

from hypernetworks import files
from hypernetworks.attention import ResidualEdit, attached
from hypernetworks.batches import Batches
from hypernetworks.catalog import Catalog
from hypernetworks.checkpoint import RunFolder
from hypernetworks.config import TrainingConfig, read
from hypernetworks.dataset import read_folder
from hypernetworks.embedded import PICTURES
from hypernetworks.errors import ConfigError, DiskFull, FileRefused, NameRefused, NameTaken, TrainingFailed
from hypernetworks.host import Folders, ModelFacts
from hypernetworks.losses import add_noise
from hypernetworks.networks import new_network, training_metadata
from hypernetworks.trainer import HypernetworkTrainer

QUICK = dict(
    name="quick", dataset=str(PICTURES / "striped"), max_steps=4, batch_size=2, preview_every=0, validation_every=0, checkpoint_every=0,
    per_layer=False, warmup_steps=0,
)


def trainer(**changes):
    return HypernetworkTrainer(config=QUICK | changes)


def events(one, host, **how):
    return list(one.run(host=host, **how))


def test_a_run_lowers_the_loss_on_pictures_it_is_not_trained_on(host):
    found = events(trainer(max_steps=24, batch_size=4, validation_every=24, learning_rate="2e-3", validation_share=0.2), host)
    before, after = [event.validation_loss for event in found if event.kind == "validation"]
    assert after < 0.9 * before
    assert found[-1].kind == "finished" and found[-1].path.exists()


def test_the_file_rebuilds_the_network_and_says_where_it_comes_from(host):
    one = trainer(preview_every=4, preview_steps=2, preview_prompts="a red star", learning_rate="1e-2", max_steps=4)
    path = events(one, host)[-1].path
    assert equal(weights(files.load(path)), weights(one.hypernetwork))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["base_model"] == host.model.name and metadata["base_model_hash"] == host.model.hash
    assert metadata["step"] == "4" and metadata["dataset_size"] == "16" and metadata["name"] == "quick"
    assert json.loads(metadata["settings"])["learning_rate"] == "1e-2"
    assert metadata["date"][:2] == "20" and len(metadata["preview"]) > 100


@pytest.mark.parametrize("changes", [
    {},
    {"mixed_precision": "bf16", "max_steps": 4},
    {"dropout_structure": (0, 0.3, 0), "layer_norm": True, "gradient_accumulation": 2, "flip": True, "crops": 2},
    {"per_layer": True, "target_layers": ("attn2",), "optimizer": "RAdam"},
], ids=["plain", "bf16", "dropout", "per layer"])
def test_a_resumed_run_is_bit_for_bit_the_run_that_never_stopped(host, tmp_path, changes):
    whole = trainer(**changes)
    whole_losses = losses(events(whole, host))
    host.folders = Folders.below(tmp_path / "again")
    first = trainer(**changes)
    begun = []
    for event in first.run(host=host):
        begun.append(event)
        if event.kind == "step" and event.step == 2:
            first.stop()
    assert begun[-1].kind == "stopped" and begun[-1].step == 2
    second = trainer(**changes)
    rest = events(second, host, resume=True)
    assert losses(begun) + losses(rest) == whole_losses
    assert equal(weights(second.hypernetwork), weights(whole.hypernetwork))
    rows = RunFolder(host.folders.runs, "quick").rows()
    assert [row.step for row in rows] == [1, 2, 3, 4] and [row.loss for row in rows] == whole_losses


def test_previews_and_validations_do_not_change_a_run(host, tmp_path):
    plain = trainer(dropout_structure=(0, 0.3, 0))
    events(plain, host)
    host.folders = Folders.below(tmp_path / "again")
    watched = trainer(dropout_structure=(0, 0.3, 0), preview_every=1, preview_steps=2, validation_every=1, checkpoint_every=1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = events(watched, host)
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(weights(watched.hypernetwork), weights(plain.hypernetwork))
    pictures = [path for event in found if event.kind == "preview" for path in event.pictures]
    assert len(pictures) == 5 * 4 and all(path.exists() for path in pictures)


def test_a_changed_rate_counts_after_resuming(host):
    first = trainer(max_steps=2, learning_rate="1e-3", rate_schedule="constant")
    events(first, host)
    second = trainer(max_steps=3, learning_rate="1e-6", rate_schedule="constant")
    found = events(second, host, resume=True)
    assert [event.rate for event in found if event.kind == "step"] == [1e-6]


def test_gradient_checkpointing_gives_the_same_run(host, tmp_path):
    plain = trainer(weight_initialization="KaimingUniform")
    plain_losses = losses(events(plain, host))
    host.folders = Folders.below(tmp_path / "again")
    other = trainer(weight_initialization="KaimingUniform", gradient_checkpointing=True)
    assert losses(events(other, host)) == pytest.approx(plain_losses, rel=1e-4)


def test_an_accumulated_step_follows_the_mean_of_its_batches_gradients(host):
    changes = dict(
        gradient_accumulation=2, optimizer="SGD", learning_rate="1.0", rate_schedule="constant", clip_norm=0, max_steps=1,
        weight_initialization="KaimingUniform",
    )
    config = read(TrainingConfig, QUICK | changes)
    network = new_network(host.unet, config)
    before = weights(network)
    batches = Batches(host, config, read_folder(config.dataset))
    list(batches.prepare())
    with host.training(), attached(host.unet, [ResidualEdit(network)]):
        for micro_step in range(2):
            batch = batches.at(1, micro_step)
            alphas = host.alphas_cumprod[batch.timesteps]
            predicted = host.predict(add_noise(batch.latents, batch.noise, alphas), batch.timesteps, batch.conditioning, batch.sizes)
            snr = alphas / (1 - alphas)
            per_sample = (predicted - batch.noise).pow(2).mean((1, 2, 3)) * snr.clamp(max=5) / snr
            (per_sample.mean() / 2).backward()
    expected = {name: before[name] - parameter.grad for name, parameter in network.named_parameters()}
    one = trainer(**changes)
    events(one, host)
    for name, value in weights(one.hypernetwork).items():
        assert torch.allclose(value, expected[name], rtol=1e-4, atol=1e-7), name


def test_precision_may_change_from_run_to_run_in_one_process(host, tmp_path):
    results = []
    for number, precision in enumerate(("no", "bf16", "no")):
        host.folders = Folders.below(tmp_path / str(number))
        results.append(losses(events(trainer(mixed_precision=precision, max_steps=2), host)))
    assert results[0] == results[2] != results[1]
    assert results[1] == pytest.approx(results[0], rel=0.05)


def test_the_model_is_as_it_was_after_a_run_and_after_a_crash(host, monkeypatch):
    def state():
        return [(name, p.requires_grad, p.grad is None, p._version) for name, p in host.unet.named_parameters()], hooks(host.unet)

    before = state()
    events(trainer(), host)
    assert state() == before
    predict = type(host).predict
    calls = iter(range(100))

    def fails(self, *arguments):
        if next(calls) == 2:
            raise RuntimeError("on purpose")
        return predict(self, *arguments)

    monkeypatch.setattr(type(host), "predict", fails)
    with pytest.raises(RuntimeError, match="on purpose"):
        events(trainer(name="crash"), host)
    assert state() == before


def test_a_loss_that_is_no_number_leaves_the_last_good_weights(host):
    path = events(trainer(), host)[-1].path
    kept = weights(files.load(path))
    with pytest.raises(TrainingFailed, match="not a number at step"):
        events(trainer(max_steps=40, learning_rate="1e30", optimizer="SGD", clip_norm=0, rollbacks=0), host, resume=True)
    for _ in range(2):
        assert equal(weights(files.load(path)), kept) and equal(RunFolder(host.folders.runs, "quick").load_state()["weights"], kept)
        end = events(trainer(max_steps=40, learning_rate="1e30", optimizer="SGD", clip_norm=0), host, resume=True)[-1]
        assert (end.kind, end.step) == ("stopped", 4)


def test_cancelling_writes_no_network_file(host):
    one = trainer(max_steps=50)
    found = []
    for event in one.run(host=host):
        found.append(event)
        if event.kind == "step":
            one.cancel()
    assert found[-1].kind == "cancelled" and len(losses(found)) == 1
    assert not (host.folders.networks / "quick.safetensors").exists()


def test_an_existing_name_is_never_overwritten_unasked(host):
    path = events(trainer(max_steps=1), host)[-1].path
    kept = path.read_bytes()
    with pytest.raises(NameTaken, match="quick"):
        events(trainer(max_steps=1, seed=3), host)
    assert path.read_bytes() == kept
    events(trainer(max_steps=1, seed=3), host, overwrite=True)
    assert path.read_bytes() != kept


def test_resuming_without_a_run_goes_on_from_the_file(host):
    first = trainer(max_steps=2)
    events(first, host)
    shutil.rmtree(host.folders.runs)
    second = trainer(max_steps=1, learning_rate="0", optimizer_arguments="weight_decay=0.0")
    events(second, host, resume=True)
    assert equal(weights(second.hypernetwork), weights(first.hypernetwork))


def test_a_disk_without_room_for_a_checkpoint_is_said_before_the_first_step_and_leaves_all_as_it_was(host, monkeypatch):
    path = events(trainer(max_steps=1), host)[-1].path
    kept = {file: file.read_bytes() for file in path.parent.parent.rglob("*") if file.is_file()}
    size = path.stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=3 * size))
    found = []
    with pytest.raises(DiskFull, match="A checkpoint of quick cannot be saved: it takes .* MB and the disk of .* has .* MB left"):
        found += trainer(max_steps=2).run(host=host, overwrite=True)
    assert losses(found) == [] and {file: file.read_bytes() for file in path.parent.parent.rglob("*") if file.is_file()} == kept


def test_what_a_killed_process_left_half_written_is_cleared(host):
    run = RunFolder(host.folders.runs, "quick")
    left = [
        host.folders.networks / ".quick.safetensors.0123abcd.safetensors", run.path / ".state.pt.0123abcd.pt",
        run.path / "checkpoints" / ".step-000001.safetensors.0123abcd.safetensors", run.path / "previews" / ".step-000001-1.png.0123abcd.png",
    ]
    others = [host.folders.networks / ".other.safetensors.0123abcd.safetensors"]
    for file in left + others:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"half of i")
    events(trainer(max_steps=1), host)
    assert not any(file.exists() for file in left) and all(file.exists() for file in others)


def test_a_state_that_does_not_fit_is_refused_in_one_sentence(host):
    events(trainer(max_steps=1), host)
    run = RunFolder(host.folders.runs, "quick")
    state = run.load_state()
    for change in ({"weights": {}}, {"optimizer": 3}, {"weights": {name: torch.zeros(1) for name in state["weights"]}}):
        run.save_state(state | change)
        with pytest.raises(FileRefused, match="The state of the run 'quick' cannot be read .it does not fit"):
            events(trainer(max_steps=2), host, resume=True)


def test_resuming_with_another_structure_is_refused(host):
    events(trainer(max_steps=1), host)
    with pytest.raises(ConfigError, match="another structure"):
        events(trainer(max_steps=2, layer_structure=(1, 3, 1)), host, resume=True)


def test_epochs_end_a_run(host):
    found = events(trainer(max_steps=100, max_epochs=1, batch_size=8, validation_share=0), host)
    assert found[-1].step == 2


@pytest.mark.parametrize("text, multiple", [("auto", 1), ("auto*0.5", 0.5), ("Auto * 2:1, 1", 2)])
def test_the_automatic_rate_is_scaled_by_width(host, text, multiple):
    one = trainer(max_steps=1, rate_schedule="constant", learning_rate=text)
    found = events(one, host)
    rate = next(event.rate for event in found if event.kind == "step")
    assert rate * 48 == pytest.approx(0.384 * multiple)
    assert one.hypernetwork.keys == (48, 96, 128)


def test_a_residual_penalty_keeps_the_change_small(host, tmp_path):
    def size(penalty, folder):
        host.folders = Folders.below(tmp_path / folder)
        one = trainer(max_steps=8, learning_rate="5e-3", residual_penalty=penalty)
        events(one, host)
        x = torch.randn(64, 128, generator=torch.manual_seed(0))
        with torch.no_grad():
            return float(sum(f(x).pow(2).mean() for f in one.hypernetwork.pair(128)))

    assert size(100.0, "much") < 0.5 * size(0.0, "none")


def test_shuffled_tags_are_encoded_at_each_step_and_the_user_is_told(host):
    found = events(trainer(shuffle_tags=True, max_steps=1), host)
    assert any("ms more per step" in event.message for event in found if event.kind == "warning")


def test_names_and_precisions_that_cannot_be_are_refused_before_anything_starts(host):
    with pytest.raises(NameRefused):
        events(trainer(name="a/b"), host)
    with pytest.raises(ConfigError, match="graphics card"):
        events(trainer(mixed_precision="fp16"), host)
    assert not host.folders.networks.exists() or not list(host.folders.networks.iterdir())


def test_training_goes_on_with_a_network_that_is_given(host):
    network = new_network(host.unet, read(TrainingConfig, QUICK | {"weight_initialization": "KaimingUniform"}))
    one = HypernetworkTrainer(network, QUICK | {"max_steps": 1})
    before = weights(network)
    path = one.train(host=host)
    assert isinstance(path, Path) and one.hypernetwork is network and not equal(weights(network), before)


def test_a_pt_is_written_beside_the_file_on_request_and_the_catalog_lists_the_network_once(host):
    end = events(trainer(also_pt=True, max_steps=2), host)[-1]
    safetensors, pt = (host.folders.networks / f"quick.{suffix}" for suffix in ("safetensors", "pt"))
    assert end.path == safetensors and "quick.safetensors and quick.pt" in end.message
    assert equal(weights(files.load(pt)), weights(files.load(safetensors))) and files.load(pt).step == 2
    catalog = Catalog(host.folders.networks)
    assert catalog.names() == ["quick"] and catalog.path("quick") == safetensors


def test_a_stopped_run_writes_the_pt_too_and_going_on_replaces_it(host):
    first = trainer(also_pt=True)
    for event in first.run(host=host):
        if event.kind == "step" and event.step == 2:
            first.stop()
    pt = host.folders.networks / "quick.pt"
    assert files.load(pt).step == 2
    events(trainer(also_pt=True), host, resume=True)
    assert files.load(pt).step == 4


def test_a_cancelled_run_writes_no_pt(host):
    one = trainer(also_pt=True)
    for event in one.run(host=host):
        if event.kind == "step":
            one.cancel()
    assert not list(host.folders.networks.glob("*"))


@pytest.mark.parametrize("resume", [False, True])
def test_somebody_elses_pt_is_never_overwritten_unasked(host, resume):
    if resume:
        events(trainer(max_steps=1), host)  # a run of that name that wrote no .pt
    pt = host.folders.networks / "quick.pt"
    pt.parent.mkdir(parents=True, exist_ok=True)
    pt.write_bytes(b"mine")
    with pytest.raises(NameTaken, match="quick.pt already"):
        events(trainer(also_pt=True), host, resume=resume)
    assert pt.read_bytes() == b"mine"
    events(trainer(also_pt=True, max_steps=1), host, overwrite=True)
    assert files.load(pt).step == 1


def test_a_pt_of_a_network_per_layer_is_refused_before_anything_starts(host, tmp_path):
    with pytest.raises(ConfigError, match="per layer.*also_pt"):
        events(trainer(also_pt=True, per_layer=True), host)
    assert not list(tmp_path.iterdir())
    events(trainer(per_layer=True, max_steps=1), host)
    shutil.rmtree(host.folders.runs)  # goes on from the file, which is of the other kind than the options say
    with pytest.raises(ConfigError, match="per layer.*also_pt"):
        events(trainer(also_pt=True, per_layer=False), host, resume=True)
    assert not RunFolder(host.folders.runs, "quick").path.exists()


def test_a_structure_that_no_file_could_hold_is_refused_before_it_is_made(host):
    with pytest.raises(ConfigError, match=r"GB here, and 4\.3 GB are the most"):
        new_network(host.unet, TrainingConfig(layer_structure=(1, 900, 900, 1)))


def test_a_file_tells_the_name_of_the_folder_of_pictures_but_not_where_it_lies():
    config = TrainingConfig(name="ink", dataset="/home/somebody/pictures/ink drawings")
    metadata = training_metadata(config, ModelFacts("m", "h", "sd1", "epsilon", 512), 3, None)
    assert "somebody" not in str(metadata) and "ink drawings" in metadata["settings"]


@pytest.mark.parametrize("damaged", [
    {"options": [1]}, {"options": "x"}, {"parts": [1]}, {"parts": [{}]}, {"parts": {}}, {"parts": [{"from_step": "0", "options": {}, "pictures": ""}]}, {"date": 3},
    {"model": []}, {"began_from": None}, {"surroundings": 1},
])  # fmt: skip
def test_a_run_goes_on_where_its_config_was_damaged(host, damaged):
    events(trainer(max_steps=1), host)
    run = RunFolder(host.folders.runs, "quick")
    file = run.path / "config.json"
    file.write_text(json.dumps(run.about() | damaged))
    assert run.about() == {}
    assert events(trainer(max_steps=2), host, resume=True)[-1].step == 2
    (part,) = run.about()["parts"]
    assert part["from_step"] == 1 and run.about()["options"]["max_steps"] == 2
