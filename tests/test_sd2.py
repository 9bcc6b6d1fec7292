"""Stable Diffusion 2 with v-prediction in half precision: no number is lost, also where attention's logits are larger than fp16 can hold, which is
what black pictures of Stable Diffusion 2.1 came from."""
import pytest
import torch
from PIL import Image
from tiny_models import make_pipeline
from training_runs import losses, weights

from hypernetworks.host import Conditioning, Folders, GenerationRequest
from hypernetworks.hosts.diffusers import DiffusersHost
from hypernetworks.trainer import HypernetworkTrainer

LARGEST = torch.finfo(torch.float16).max
QUICK = dict(
    name="ink", max_steps=3, batch_size=2, resolution=16, bucket_step=8, learning_rate="1e-3", warmup_steps=0, preview_every=0, validation_every=3,
    checkpoint_every=0, validation_share=0.1,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The model, and pictures."""
    folder = tmp_path_factory.mktemp("sd2")
    make_pipeline("sd2", context=1024).save_pretrained(str(folder / "model"))
    (folder / "pictures").mkdir()
    for number in range(8):
        Image.effect_noise((32, 32), 20 + number).convert("RGB").save(folder / "pictures" / f"{number}.png")
    return folder


def host_of(folder, dtype, home):
    """With large weights where attention compares queries and keys."""
    host = DiffusersHost(folder / "model", Folders.below(home), device="cpu", dtype=dtype)
    for name, module in host.unet.named_modules():
        if name.endswith(("attn1.to_q", "attn1.to_k", "attn2.to_q", "attn2.to_k")):
            module.weight.data.mul_(300)
    return host


@pytest.fixture(scope="module")
def reference(folder):
    """Losses and validation losses in float32."""
    return trained(host_of(folder, torch.float32, folder / "float32"), folder)[1:]


def trained(host, folder, **changes):
    one = HypernetworkTrainer(config=QUICK | changes)
    found = list(one.run(folder / "pictures", host))
    return one, losses(found), [event.validation_loss for event in found if event.kind == "validation"]


@pytest.mark.parametrize("dtype, precision", [(torch.float32, "bf16"), (torch.bfloat16, "no"), (torch.float16, "no")])
def test_training_in_half_precision_has_about_the_losses_of_float32(folder, tmp_path, reference, dtype, precision):
    host = host_of(folder, dtype, tmp_path)
    assert (host.model.family, host.model.prediction_type) == ("sd2", "v_prediction")
    one, found, validated = trained(host, folder, mixed_precision=precision)
    assert found == pytest.approx(reference[0], rel=0.15) and validated == pytest.approx(reference[1], rel=0.15)  # so sharp attention magnifies roundings
    assert all(value.isfinite().all() and value.dtype == torch.float32 for value in weights(one.hypernetwork).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_that_fp16_cannot_hold_give_numbers_and_gradients(folder, tmp_path, dtype):
    host, seen = host_of(folder, dtype, tmp_path), {}
    attention = host.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    for part in ("to_q", "to_k"):
        getattr(attention, part).register_forward_hook(lambda module, inputs, output, part=part: seen.update({part: output.detach().float()}))
    context = host.encode_prompts(["a star"]).context.float().requires_grad_()
    with host.training():
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        predicted = host.predict(latents, torch.tensor([500]), Conditioning(context), [])
        predicted.float().square().mean().backward()
    assert (seen["to_q"] @ seen["to_k"].mT).abs().max() > LARGEST  # one head: the width is 32
    assert predicted.isfinite().all() and context.grad.isfinite().all() and context.grad.abs().max() > 0


def test_previews_in_half_precision_are_no_black_pictures(folder, tmp_path):
    (picture,) = host_of(folder, torch.float16, tmp_path).generate(GenerationRequest("a star", steps=2, width=16, height=16))
    low, high = zip(*picture.getextrema(), strict=True)
    assert max(high) - min(low) > 20
