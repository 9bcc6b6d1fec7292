"""What a run's memory is foreseen to be: counted by hand where that can be done, and never in the way of the run."""
import dataclasses

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from hypernetworks import forecast, trainer
from hypernetworks.cli import main
from hypernetworks.config import TrainingConfig, read
from hypernetworks.embedded import PICTURES, shapes
from hypernetworks.embedded.make_pictures import make_pictures
from hypernetworks.forecast import Forecast, _Watch
from hypernetworks.jobs import Jobs
from hypernetworks.trainer import HypernetworkTrainer
from hypernetworks.ui import progress

QUICK = dict(name="quick", dataset=str(PICTURES / "striped"), max_steps=1, batch_size=1, preview_every=0, validation_every=0, checkpoint_every=0)
PART = dict(model=3_000_000_000, network=100_000_000, gradients=100_000_000, optimizer=200_000_000, activations=1_700_000_000)


def foreseen(host, **changes):
    return HypernetworkTrainer(config=QUICK | changes).forecast(host=host)


def test_the_sum_is_that_of_passes_or_update_whichever_is_more():
    plain = Forecast(**PART)
    assert plain.needed == 5_000_000_000
    assert dataclasses.replace(plain, accumulated=True).needed == 5_100_000_000
    assert dataclasses.replace(plain, offloaded=True).needed == 4_800_000_000
    assert dataclasses.replace(plain, activations=0, offloaded=True).needed == 3_400_000_000  # the update, with all that it needs


@pytest.mark.parametrize("free, fits, words", [
    (8_000_000_000, True, "This needs about 5.0 GB; 8.0 GB are free."),
    (None, True, "This needs about 5.0 GB."),
    (4_000_000_000, False, "This needs about 5.0 GB; 4.0 GB are free. Gradient checkpointing, a smaller batch"),
])  # fmt: skip
def test_the_sentence_says_what_is_needed_and_what_is_free(free, fits, words):
    one = Forecast(**PART, free=free)
    assert one.fits is fits and one.sentence.startswith(words)
    assert one.table() == [("model", "3.0 GB"), ("network", "0.1 GB"), ("optimizer", "0.2 GB"), ("one step", "1.7 GB")]


def test_tensors_are_counted_as_long_as_they_are_held():
    """y = relu(x @ w): forward holds x w (for nothing, relu is in place) and y; backward the gradients of y, of x w and of w."""
    weight = nn.Parameter(torch.ones(256, 64))
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        weight = fake.from_tensor(weight)
        x = torch.ones(128, 256)
        with _Watch() as watch:
            first = x @ weight  # 128 x 64
            second = first * 2  # another one
            view = second[1:]
            assert watch.held == watch.most == 2 * 4 * 128 * 64
            del first
            assert watch.held == 4 * 128 * 64
            del second
            assert watch.held == 4 * 128 * 64  # the view holds it
            del view
            assert watch.held == 0 and watch.most == 2 * 4 * 128 * 64
            F.relu(x @ weight).sum().backward()
            assert watch.held == 4 * 256 * 64  # the gradient that is left


def test_weights_and_optimizer_are_those_of_the_network(host):
    one = foreseen(host, batch_size=2, validation_every=1, ema_decay=0.9, gradient_accumulation=2)
    trained = HypernetworkTrainer(config=QUICK)
    list(trained.run(host=host))
    size = sum(parameter.nbytes for parameter in trained.hypernetwork.parameters())
    assert (one.network, one.gradients) == (2 * size, size) and one.accumulated
    assert one.optimizer == pytest.approx(2 * size, rel=1e-3)  # AdamW's two averages
    assert one.model == sum(tensor.nbytes for tensor in host.unet.state_dict().values())
    without = read(TrainingConfig, QUICK | {"optimizer": "SGD", "rollbacks": 0})
    assert forecast._optimizer_bytes(without, host.device) == 0


def test_a_steps_bytes_are_those_that_its_graph_saves_and_a_little_more(host):
    """PyTorch itself says what the graph of a real step keeps."""
    config = QUICK | {"batch_size": 2}
    one = foreseen(host, **config)
    saved = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    run = HypernetworkTrainer(config=config)
    events = run.run(host=host)
    while next(events).kind == "preparing":
        pass
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*host.unet.parameters(), *run.hypernetwork.parameters())}
    events.close()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        list(run.run(host=host, overwrite=True))
    assert sum(saved.values()) < one.activations < 1.3 * sum(saved.values())


def test_larger_batches_take_more_and_checkpointing_takes_less(host):
    two, eight = foreseen(host, batch_size=2), foreseen(host, batch_size=8)
    assert 3 * two.activations < eight.activations < 4.1 * two.activations
    assert foreseen(host, batch_size=8, gradient_checkpointing=True).activations < 0.7 * eight.activations
    assert not host.unet.is_gradient_checkpointing and all(parameter.grad is None for parameter in host.unet.parameters())


@pytest.mark.parametrize("conditions", [("text", "image"), ("task",)])
def test_a_generators_run_is_foreseen_too(host, tmp_path, conditions):
    for name in ("striped", "sepia"):
        make_pictures(tmp_path / "styles" / name, shapes.STYLES[name])
        for picture in sorted((tmp_path / "styles" / name).glob("*.png"))[2:]:
            picture.unlink()
    small = dict(embedding_dim=32, hidden_dim=48, basis_size=4, depth=1)
    one = foreseen(host, kind="generator", dataset=str(tmp_path / "styles"), conditions=conditions, **small)
    assert one.activations > 5e6 and one.optimizer > 1e6


def test_a_run_says_it_first_and_warns_where_there_is_too_little(host, monkeypatch):
    monkeypatch.setattr(trainer, "SMALL", 0)
    monkeypatch.setattr(trainer, "foresee", lambda *_: Forecast(**PART, free=6 * 10**9))
    first = next(HypernetworkTrainer(config=QUICK).run(host=host))
    assert (first.kind, first.steps, first.message) == ("preparing", 0, "This needs about 5.0 GB; 6.0 GB are free.")
    monkeypatch.setattr(trainer, "foresee", lambda *_: Forecast(**PART, free=4 * 10**9))
    found = list(HypernetworkTrainer(config=QUICK).run(host=host))
    assert found[0].kind == "warning" and "4.0 GB are free" in found[0].message and found[-1].kind == "finished"


def test_a_model_that_wants_values_is_trained_without_a_forecast(host, monkeypatch):
    predict = host.predict

    def looks(noisy, *others):
        assert float(noisy.abs().max()) > 0  # fails for tensors without values, as a web UI's test for NaNs does
        return predict(noisy, *others)

    monkeypatch.setattr(host, "predict", looks)
    monkeypatch.setattr(trainer, "SMALL", 0)
    assert foreseen(host) is None
    found = list(HypernetworkTrainer(config=QUICK).run(host=host))
    assert found[0].steps > 0 and found[-1].kind == "finished"


def test_the_page_shows_it_while_the_run_goes_on(host, monkeypatch):
    monkeypatch.setattr(trainer, "SMALL", 0)
    monkeypatch.setattr(trainer, "foresee", lambda *_: Forecast(**PART))
    jobs = Jobs(host)
    job = jobs.start(HypernetworkTrainer(config=QUICK).config)
    shown = set()
    while job.running:
        shown.add("This needs about" in progress.status(job))
        job.wait(0.05)
    assert job.error is None and job.foreseen.startswith("This needs about") and True in shown
    assert "This needs about" not in progress.status(job)


def test_the_command_line_says_it_and_trains_nothing(tmp_path, capsys):
    assert main(["train", "--forecast", "--home", str(tmp_path), "--name", "quick", "--dataset", str(PICTURES / "striped")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == ["model", "network", "optimizer", "one step"]
    assert lines[-1].startswith("This needs about ") and not (tmp_path / "networks").exists() and not (tmp_path / "data" / "runs").exists()
