"""What a run does when the device's memory is full, and an optimizer whose state is kept elsewhere."""
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from training_runs import equal, losses, weights

from hypernetworks.batches import Batch
from hypernetworks.checkpoint import RunFolder
from hypernetworks.conditions import Condition
from hypernetworks.embedded import PICTURES
from hypernetworks.errors import TrainingFailed
from hypernetworks.host import Conditioning, Folders, PictureSize
from hypernetworks.memory import Offload, is_out_of_memory, without_inputs_of_convolutions
from hypernetworks.trainer import HypernetworkTrainer

QUICK = dict(
    name="quick", dataset=str(PICTURES / "striped"), max_steps=2, batch_size=4, preview_every=0, validation_every=0, checkpoint_every=0,
    per_layer=False, warmup_steps=0, weight_initialization="KaimingUniform", optimizer="SGD", learning_rate="1.0", rate_schedule="constant",
)  # fmt: skip


def run(host, **changes):
    one = HypernetworkTrainer(config=QUICK | changes)
    return one, list(one.run(host=host))


def warnings(found):
    return [event.message for event in found if event.kind == "warning"]


class Full:
    """A graphics card that has room for so many samples in a pass with gradients; with checkpointing for one more than without."""

    def __init__(self, host, monkeypatch, room, where="forward"):
        self.host, self.room, self.tried = host, room, []
        self.failed = 0
        predict = host.predict

        def predicts(noisy, *others):
            if not torch.is_grad_enabled():
                return predict(noisy, *others)
            self.tried.append(len(noisy))
            fails = len(noisy) > self.room + host.unet.is_gradient_checkpointing
            if fails and where == "forward":
                self.fail()
            predicted = predict(noisy, *others)
            if fails:
                predicted.register_hook(lambda gradient: self.fail())
            return predicted

        monkeypatch.setattr(host, "predict", predicts)

    def fail(self):
        self.failed += 1
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.mark.parametrize("where, accumulation", [("forward", 1), ("backward", 2)])
def test_a_step_without_room_is_done_again_in_halves_with_the_same_gradients(host, tmp_path, monkeypatch, where, accumulation):
    whole, expected = run(host, gradient_accumulation=accumulation)
    host.folders = Folders.below(tmp_path / "again")
    full = Full(host, monkeypatch, room=1, where=where)
    one, found = run(host, gradient_accumulation=accumulation)
    assert full.tried == [4, 2] + [1] * 4 * 2 * accumulation and full.failed == 2
    assert losses(found) == pytest.approx(losses(expected), rel=1e-5)
    for name, value in weights(one.hypernetwork).items():
        assert torch.allclose(value, weights(whole.hypernetwork)[name], rtol=1e-4, atol=1e-7), name
    (message,) = warnings(found)
    assert "ran out of memory at step 1" in message and "each batch of 4 goes through the model in parts of 1" in message


def test_what_was_found_out_is_kept_for_going_on(host, monkeypatch):
    full = Full(host, monkeypatch, room=2)
    run(host, max_steps=1)
    assert RunFolder(host.folders.runs, "quick").load_state()["room"] == (2, False)
    full.tried.clear()
    one = HypernetworkTrainer(config=QUICK)
    (message,) = warnings(one.run(host=host, resume=True))
    assert message == "The machine ran out of memory before this run was paused, so each batch of 4 goes through the model in parts of 2."
    assert full.tried == [2, 2]


def test_what_was_found_out_is_forgotten_for_batches_of_another_kind(host, monkeypatch):
    full = Full(host, monkeypatch, room=2)
    run(host, max_steps=1)
    full.room = 99
    full.tried.clear()
    one = HypernetworkTrainer(config=QUICK | {"batch_size": 3})
    assert warnings(one.run(host=host, resume=True)) == [] and full.tried == [3]


def test_a_run_whose_memory_was_never_full_leaves_larger_batches_whole(host, monkeypatch):
    full = Full(host, monkeypatch, room=99)
    run(host, max_steps=1)
    assert RunFolder(host.folders.runs, "quick").load_state()["room"] is None
    full.tried.clear()
    one = HypernetworkTrainer(config=QUICK | {"batch_size": 12})
    assert warnings(one.run(host=host, resume=True)) == [] and full.tried == [12]


def test_a_single_sample_without_room_is_checkpointed_and_then_the_run_ends_with_a_sentence(host, tmp_path, monkeypatch):
    full = Full(host, monkeypatch, room=0)
    one, found = run(host, max_steps=1, batch_size=2)
    assert full.tried == [2, 1, 1, 1] and not host.unet.is_gradient_checkpointing
    assert "in parts of 1 and gradient checkpointing is on" in warnings(found)[0]
    assert RunFolder(host.folders.runs, "quick").load_state()["room"] == (1, True)
    host.folders = Folders.below(tmp_path / "again")
    full = Full(host, monkeypatch, room=-1)
    with pytest.raises(TrainingFailed, match="ran out of memory at step 1; choose gradient checkpointing, a smaller batch"):
        run(host, max_steps=1, batch_size=1)
    assert full.tried == [1, 1] and not host.unet.is_gradient_checkpointing
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in host.unet.modules())


def test_validation_goes_in_parts_too(host, monkeypatch):
    expected = run(host, max_steps=1, validation_every=1)[1]
    honest, left = host.predict, [1]

    def fails_once(noisy, *others):
        if not torch.is_grad_enabled() and left.pop() if left else False:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return honest(noisy, *others)

    monkeypatch.setattr(host, "predict", fails_once)
    one = HypernetworkTrainer(config=QUICK | {"max_steps": 1, "validation_every": 1})
    found = list(one.run(host=host, overwrite=True))
    values = [[event.validation_loss for event in events if event.kind == "validation"] for events in (found, expected)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert "while validating; from here each batch of 8 goes through the model in parts of 4" in warnings(found)[0]


def convolutions():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.SiLU(), nn.Conv2d(8, 4, 3, stride=2, padding=1))


def kept_by(model, x):
    """Loss, gradient of the input, and the bytes that the graph keeps beside weights and the input."""
    known = {one.untyped_storage().data_ptr() for one in (*model.parameters(), x)}
    x = x.clone().requires_grad_()
    loss = model(x).square().sum()
    bytes_of, nodes, seen = {}, [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
        for name in dir(node):
            if name.startswith("_saved_") and isinstance(kept := getattr(node, name), torch.Tensor):
                bytes_of[kept.untyped_storage().data_ptr()] = kept.untyped_storage().nbytes()
    loss.backward()
    return loss.detach(), x.grad, sum(count for place, count in bytes_of.items() if place not in known)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_convolutions_keep_no_values_of_what_they_read_and_give_the_same_gradients(dtype):
    model, x = convolutions().to(dtype).requires_grad_(False), torch.randn(2, 4, 32, 32, dtype=dtype)
    loss, gradient, kept = kept_by(model, x)
    with without_inputs_of_convolutions(model):
        lean_loss, lean_gradient, lean_kept = kept_by(model, x)
    assert torch.equal(loss, lean_loss) and torch.equal(gradient, lean_gradient)
    activation = 2 * 8 * 32 * 32 * x.itemsize
    # what each SiLU read stays; what each convolution read, the copy of x and both activations, is gone
    assert kept - lean_kept == pytest.approx(2 * activation + x.nbytes, abs=64)
    assert kept_by(model, x)[2] == kept and not any(one._forward_hooks or one._forward_pre_hooks for one in model)


def test_convolutions_that_learn_keep_what_they_read():
    model, x = convolutions(), torch.randn(1, 4, 8, 8)
    with without_inputs_of_convolutions(model):
        model(x).sum().backward()
    found = [weight.grad for weight in model.parameters()]
    model.zero_grad()
    model(x).sum().backward()
    assert all(map(torch.equal, found, (weight.grad for weight in model.parameters())))


def test_a_convolution_that_fails_leaves_others_as_they_are():
    model = convolutions().requires_grad_(False)
    with without_inputs_of_convolutions(model):
        with pytest.raises(RuntimeError):
            model(torch.randn(1, 5, 8, 8))
        a = torch.randn(1, 4, 8, 8, requires_grad=True)
        (a * a).sum().backward()  # would keep shapes alone, were the hooks still there
    assert torch.equal(a.grad, 2 * a)


def test_other_errors_are_none_of_its_business(host, monkeypatch):
    def fails(*arguments):
        raise RuntimeError("on purpose")

    monkeypatch.setattr(host, "predict", fails)
    with pytest.raises(RuntimeError, match="on purpose"):
        run(host)


@pytest.mark.parametrize("error, is_one", [
    (torch.cuda.OutOfMemoryError("CUDA out of memory."), True),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), True),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    (KeyboardInterrupt(), False),
])  # fmt: skip
def test_out_of_memory_is_known_by_what_devices_say(error, is_one):
    assert is_out_of_memory(error) is is_one


def test_a_part_of_a_batch_has_all_that_belongs_to_its_samples():
    generator = torch.Generator().manual_seed(0)
    rows = {name: torch.randn(4, 2, 3, 3, generator=generator) for name in ("latents", "noise", "area", "perturbation")}
    sizes = [PictureSize((number, 1), (0, 0), (1, 1)) for number in range(4)]
    batch = Batch(
        rows["latents"], rows["noise"], torch.arange(4), Conditioning(torch.arange(4.0).view(4, 1, 1), torch.arange(4.0).view(4, 1)), sizes,
        Condition(task=torch.arange(4)), torch.arange(4.0), rows["area"], rows["perturbation"], torch.tensor([True, False, True, False]),
    )  # fmt: skip
    part = batch.part(1, 3)
    assert len(batch) == 4 and len(part) == 2
    assert part.timesteps.tolist() == part.condition.task.tolist() == part.weights.tolist() == [1, 2]
    assert part.conditioning.context.flatten().tolist() == part.conditioning.pooled.flatten().tolist() == [1, 2]
    assert part.sizes == sizes[1:3] and part.regular.tolist() == [False, True]
    for name, value in rows.items():
        assert torch.equal(getattr(part, name), value[1:3])
    assert len(batch.part(3, 8)) == 1 and Batch(rows["latents"], rows["noise"], torch.arange(4), batch.conditioning, sizes).part(0, 2).area is None


def test_an_offloaded_optimizers_state_is_on_the_device_for_the_step_only():
    mode = FakeTensorMode()

    def ones():
        """On a device that need not be there; torch 2.1 would look for a graphics card."""
        return FakeTensor(mode, torch.ones(3, device="meta"), torch.device("mps:0"))

    weight = nn.Parameter(ones())
    optimizer = torch.optim.AdamW([weight], foreach=False)
    offload = Offload(optimizer)
    for _ in range(2):
        weight.grad = ones()
        with offload.at_hand():
            if optimizer.state:
                assert {optimizer.state[weight][name].device.type for name in ("exp_avg", "exp_avg_sq")} == {"mps"}
            optimizer.step()
        assert {tensor.device.type for tensor in optimizer.state[weight].values()} == {"cpu"}


def test_an_offloaded_run_is_bit_for_bit_the_other(host, tmp_path):
    about = dict(optimizer="AdamW", learning_rate="1e-3", max_steps=2, batch_size=1)
    plain = run(host, **about)[0]
    host.folders = Folders.below(tmp_path / "again")
    assert equal(weights(run(host, optimizer_offload=True, **about)[0].hypernetwork), weights(plain.hypernetwork))
