"""Refining: ordinary LoRA training from what a generator makes, on the embedded model."""
import shutil

import pytest
import torch
from models import generator
from safetensors import safe_open
from safetensors.torch import load_file

from hypernetworks.catalog import Catalog
from hypernetworks.config import RefineConfig, read
from hypernetworks.embedded import PICTURES
from hypernetworks.errors import ConfigError, HypernetworkError, NameTaken
from hypernetworks.exporting import asked, export
from hypernetworks.files import save
from hypernetworks.generator_files import save_generator
from hypernetworks.host import Folders
from hypernetworks.hosts.diffusers import DiffusersHost
from hypernetworks.jobs import Jobs
from hypernetworks.refining import Refiner
from hypernetworks.residual import ResidualHypernetwork


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return DiffusersHost(None, Folders.below(tmp_path_factory.mktemp("home")), device="cpu")


@pytest.fixture
def host(made, tmp_path):
    made.folders = Folders.below(tmp_path)
    save_generator(generator(made.unet), made.folders.networks / "maker.safetensors")
    shutil.copytree(PICTURES / "striped", made.folders.pictures / "striped")
    return made


def config(host, **values):
    about = {"generator": "maker", "task": "etching", "dataset": str(host.folders.pictures / "striped"), "max_steps": 3, "batch_size": 2}
    return read(RefineConfig, about | values)


def refined(host, **values):
    refiner = Refiner(config(host, **values), Catalog(host.folders.networks))
    return list(refiner.run(host=host))


def products(path):
    stored = load_file(path)
    return {
        name: stored[f"{name}.lora_up.weight"].float() @ stored[f"{name}.lora_down.weight"].float()
        for name in {key.split(".")[0] for key in stored}
    }


def test_the_first_steps_begin_at_what_the_generator_makes(host):
    values = dict(strength=0.8, text2="a red star", blend=0.25, learning_rate="1e-9")
    events = refined(host, **values)
    end = events[-1]
    assert end.kind == "finished" and [event.kind for event in events].count("step") == 3
    plain = export(host, Catalog(host.folders.networks), asked(config(host, **values)))
    assert end.path.parent == host.folders.loras == plain.path.parent and end.path.name.startswith("maker refined-")
    before, after = products(plain.path), products(end.path)
    assert before.keys() == after.keys()
    for name, delta in before.items():
        assert (after[name] - delta).norm() < 1e-3 * delta.norm()


def test_training_changes_all_of_them_and_the_file_says_so(host):
    end = refined(host, name="fox", learning_rate="1e-2", max_steps=5)[-1]
    plain = export(host, Catalog(host.folders.networks), asked(config(host)))
    before, after = products(plain.path), products(end.path)
    assert all((after[name] - delta).norm() > 0.01 * delta.norm() for name, delta in before.items())
    with safe_open(end.path, framework="pt") as file:
        about = file.metadata()
    assert end.path.stem.startswith("fox refined-") and about["sshs_model_hash"].startswith(end.path.stem[-10:])
    assert about["ss_training_comment"] == "Made by the hypernetwork maker for the task etching. Then trained for up to 5 steps on pictures."
    assert about["hypernetworks_tag"] == "<hypernet:maker:task=etching>" and "preview" not in about
    assert str(host.folders.data) not in str(about)


def test_refining_lowers_the_loss_on_its_pictures(host):
    losses = [event.loss for event in refined(host, max_steps=40, batch_size=4, learning_rate="5e-3") if event.kind == "step"]
    assert len(losses) == 40
    assert torch.tensor(losses[-10:]).mean() < torch.tensor(losses[:10]).mean()


def test_the_same_seed_gives_the_same_file_and_a_second_run_starts_anew(host):
    assert refined(host, seed=4)[-1].path == refined(host, seed=4)[-1].path != refined(host, seed=5)[-1].path


def test_a_run_is_a_job_that_can_be_cancelled(host):
    jobs = Jobs(host)
    refiner = Refiner(config(host, max_steps=40), Catalog(host.folders.networks))
    job = jobs.start(refiner.config, trainer=refiner)
    job.cancel()
    assert job.wait(60) and job.error is None and job.path is None
    assert not host.folders.loras.exists()


def test_what_a_lora_does_not_do_is_a_warning_of_a_snapshot(host):
    values = dict(generator="<hypernet:maker:end=0.5:task=etching>", task="")
    with pytest.raises(ConfigError, match="every sampling step"):
        refined(host, **values)
    assert "every sampling step" in next(event.message for event in refined(host, snapshot=True, **values) if event.kind == "warning")


@pytest.mark.parametrize("values, error, words", [
    (dict(max_steps=41), ConfigError, "from 1 to 40"),
    (dict(dataset=""), ConfigError, "which folder"),
    (dict(dataset="/nowhere"), HypernetworkError, "nowhere"),
    (dict(task=""), ConfigError, "change with every prompt"),
    (dict(generator="residual"), ConfigError, "is no generator"),
    (dict(name="a/b"), HypernetworkError, "contains /"),
    (dict(learning_rate="fast"), ConfigError, "Learning rate"),
])  # fmt: skip
def test_what_cannot_be_refined_is_one_sentence(host, values, error, words):
    save(ResidualHypernetwork({32: 32}), host.folders.networks / "residual.safetensors")
    with pytest.raises(error, match=words):
        refined(host, **values)
    assert not host.folders.loras.exists()


def test_another_networks_run_is_not_overwritten(host):
    save(ResidualHypernetwork({32: 32}), host.folders.networks / "fox refined.safetensors")
    with pytest.raises(NameTaken):
        refined(host, name="fox")
