"""One run in several processes: it is the run of one process with all of their pictures in its batch. Two processes are really launched, on
the CPU (gloo), by the command that the README names for several graphics cards."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_runs import losses

from hypernetworks import files, processes
from hypernetworks.batches import Batches
from hypernetworks.checkpoint import RunFolder
from hypernetworks.config import TrainingConfig, read
from hypernetworks.dataset import read_folder
from hypernetworks.embedded import PICTURES, shapes
from hypernetworks.embedded.make_pictures import make_pictures
from hypernetworks.group_batches import GroupBatches
from hypernetworks.groups import read_groups
from hypernetworks.trainer import HypernetworkTrainer

LAUNCH = [
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
]  # fmt: skip
PLAIN = dict(
    name="plain", dataset=str(PICTURES / "striped"), max_steps=3, batch_size=1, per_layer=False, warmup_steps=0, learning_rate="2e-3",
    rate_schedule="constant", weight_initialization="KaimingUniform", validation_every=3, preview_every=0, checkpoint_every=0,
)
AVERAGED = PLAIN | dict(
    name="averaged", gradient_accumulation=2, ema_decay=0.9, max_steps=2, validation_every=0, preview_every=2, preview_steps=1, preview_prompts="a star",
    optimizer="SGD", learning_rate="1.0",
)  # fmt: skip
GENERATOR = PLAIN | dict(
    name="generator", kind="generator", max_steps=2, validation_every=0, encoder_steps=2, embedding_dim=32, hidden_dim=48, basis_size=4, depth=1,
    conditions=("text", "image"), weight_initialization="zero",
)


def make_styles(folder):
    """Two folders of captioned pictures, each in a style of its own."""
    for name in ("striped", "sepia"):
        make_pictures(folder / name, shapes.STYLES[name])
        for picture in sorted((folder / name).glob("*.png"))[3:]:
            picture.unlink()
    return folder


def launch(arguments, **how):
    offline = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost", "OMP_NUM_THREADS": "1"}
    paths = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [*LAUNCH, *map(str, arguments)], env=os.environ | offline | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=600, **how
    )


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What two processes found, and their home."""
    folder = tmp_path_factory.mktemp("processes")
    home = folder / "home"
    home.mkdir()
    generator = GENERATOR | {"dataset": str(make_styles(folder / "styles"))}
    runs = {
        "plain": {"options": PLAIN},
        "averaged": {"options": AVERAGED},
        "generator": {"options": generator},
        "stopped": {"options": PLAIN | {"name": "stopped", "validation_every": 0}, "act": "stop"},
        "resumed": {"options": PLAIN | {"name": "stopped", "validation_every": 0}, "resume": True},
        "cancelled": {"options": PLAIN | {"name": "cancelled"}, "act": "cancel"},
        "gone back": {"options": PLAIN | {"name": "back", "max_steps": 5, "validation_every": 1}, "act": "spoil_one_loss"},
        "unsynchronised": {"options": PLAIN | {"name": "unsynchronised", "max_steps": 1, "validation_every": 0}, "act": "leave_gradients_alone"},
    }
    (home / "runs.json").write_text(json.dumps(runs))
    done = launch([Path(__file__).parent / "several_processes.py", home])
    assert done.returncode == 0, done.stderr[-4000:]
    found = [json.loads((folder / f"found-{number}.json").read_text()) for number in range(2)]
    return found, home, generator


def alone(host, options):
    """The same run in one process, with twice as many pictures in its batch: trainer, losses, validation losses."""
    trainer = HypernetworkTrainer(config=options | {"batch_size": 2})
    found = list(trainer.run(host=host))
    return trainer, losses(found), [event.validation_loss for event in found if event.kind == "validation"]


@pytest.mark.processes
@pytest.mark.parametrize("name", ["plain", "averaged", "generator"])
def test_two_processes_have_the_losses_and_weights_of_one_with_the_doubled_batch(both, host, name):
    (first, second), home, generator = both
    trainer, expected, validated = alone(host, {"plain": PLAIN, "averaged": AVERAGED, "generator": generator}[name])
    for found in (first["runs"][name], second["runs"][name]):
        assert found["losses"] == pytest.approx(expected, rel=1e-4) and len(expected) >= 2
        assert found["validation_losses"] == pytest.approx(validated, rel=1e-4)
    if name == "averaged":  # by SGD: AdamW makes whole steps of gradients that are nothing but rounding
        ours = files.load(home / "networks" / f"{name}.safetensors").state_dict()
        for key, value in trainer.hypernetwork.state_dict().items():
            assert torch.allclose(ours[key], value, rtol=1e-4, atol=1e-6), key


@pytest.mark.processes
@pytest.mark.parametrize("name", ["plain", "averaged", "generator", "stopped", "resumed", "gone back"])
def test_both_processes_hold_the_same_weights_at_the_end_and_tell_the_same(both, name):
    (first, second), _, _ = both
    assert first["runs"][name] | {"previews": 0} == second["runs"][name] | {"previews": 0}


@pytest.mark.processes
def test_gradients_that_do_not_meet_are_found_out_by_the_weights(both):
    (first, second), _, _ = both
    assert first["runs"]["unsynchronised"]["weights"] != second["runs"]["unsynchronised"]["weights"]


@pytest.mark.processes
def test_only_the_main_process_writes_and_draws(both):
    (first, second), home, _ = both
    assert second["written"] == [] and len(first["written"]) > 50
    assert (first["runs"]["averaged"]["previews"], second["runs"]["averaged"]["previews"]) == (2, 0)
    rows = RunFolder(home / "data" / "runs", "plain").rows()
    assert [row.step for row in rows if row.loss is not None] == [1, 2, 3]


@pytest.mark.processes
def test_no_process_runs_out_of_patience_while_another_one_encodes_or_draws(both):
    for found in both[0]:
        assert found["patience"] == processes.PATIENCE.total_seconds() >= 24 * 3600


@pytest.mark.processes
def test_all_stop_where_one_is_told_to_and_going_on_leads_to_the_same_weights(both):
    (first, second), _, _ = both
    for found in (first["runs"], second["runs"]):
        assert (found["stopped"]["end"], found["stopped"]["step"]) == ("stopped", 2)
        assert found["resumed"]["weights"] == found["plain"]["weights"]
        assert found["stopped"]["losses"] + found["resumed"]["losses"] == found["plain"]["losses"]


@pytest.mark.processes
def test_all_end_where_one_is_cancelled_before_the_first_step(both):
    for found in both[0]:
        assert found["runs"]["cancelled"]["end"] == "cancelled" and found["runs"]["cancelled"]["losses"] == []


@pytest.mark.processes
def test_all_go_back_where_the_loss_of_one_is_no_number(both):
    for found in both[0]:
        (message,) = found["runs"]["gone back"]["warnings"]
        assert "not a number at step 4: back to step 2" in message
        assert found["runs"]["gone back"]["end"] == "finished"


@pytest.mark.processes
def test_the_command_line_trains_in_two_processes_and_speaks_once(tmp_path):
    values = PLAIN | {"max_steps": 1, "validation_every": 0, "validation_share": 0}
    (tmp_path / "run.json").write_text(json.dumps(values))
    done = launch(["-m", "hypernetworks", "train", "--home", tmp_path / "home", tmp_path / "run.json"])
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("Finished at step 1") == 1
    assert files.load(tmp_path / "home" / "networks" / "plain.safetensors").step == 1


def test_the_shares_of_two_processes_are_together_the_batch_of_one(host, tmp_path):
    """With pictures of three resolutions: at each step all processes have one of them, and as many pictures."""
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for number, size in enumerate([(64, 64)] * 3 + [(96, 48)] * 5 + [(48, 96)] * 2):
        Image.effect_noise(size, 20 + number).convert("RGB").save(tmp_path / "pictures" / f"{number}.png")
    about = dict(name="shares", resolution=64, bucket_step=16, batch_size=2, flip=True, validation_share=0.0, caption_dropout=0.3)
    dataset = read_folder(tmp_path / "pictures")
    shares = [Batches(host, read(TrainingConfig, about), dataset, 2, number) for number in range(2)]
    whole = Batches(host, read(TrainingConfig, about | {"batch_size": 4}), dataset)
    check_shares([*shares, whole], steps=8)
    assert len({tuple(whole.at(step, 0).latents.shape) for step in range(1, 9)}) == 3


def test_so_they_are_for_a_generator(host, tmp_path):
    about = GENERATOR | dict(name="shares", batch_size=1, validation_share=0.0)
    dataset = read_groups(make_styles(tmp_path / "styles"))
    shares = [GroupBatches(host, read(TrainingConfig, about), dataset, ("text", "image"), (), 2, number) for number in range(2)]
    whole = GroupBatches(host, read(TrainingConfig, about | {"batch_size": 2}), dataset, ("text", "image"), ())
    found = check_shares([*shares, whole], steps=6)
    for *parts, one in found:
        for kind, features in one.condition.features.items():
            assert torch.equal(features, interleaved([part.condition.features[kind] for part in parts]))


def check_shares(made, steps):
    for batches in made:
        list(batches.prepare())
    found = [[batches.at(step, 0) for batches in made] for step in range(1, steps + 1)]
    for *parts, one in found:
        assert len({part.latents.shape for part in parts}) == 1
        for name in ("latents", "noise", "timesteps"):
            assert torch.equal(interleaved([getattr(part, name) for part in parts]), getattr(one, name))
        assert torch.equal(interleaved([part.conditioning.context for part in parts]), one.conditioning.context)
    return found


def interleaved(parts):
    return torch.stack(parts, 1).flatten(0, 1)


def test_one_process_is_the_main_one_and_messages_say_which_other_one_it_was(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert processes.is_main() and processes.label() == ""
    monkeypatch.setenv("RANK", "3")
    assert not processes.is_main() and processes.label() == " (process 3)"


def test_a_host_takes_the_card_of_its_process(monkeypatch):
    from hypernetworks.hosts.diffusers import DiffusersHost

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert DiffusersHost().device == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert DiffusersHost().device == torch.device("cuda:1")
