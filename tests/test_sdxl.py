"""Stable Diffusion XL from pictures to files: a small model with XL's own counts, 70 cross-attention layers that read 2048 values from two text
encoders, and 2816 values of size and pooled text."""
import shutil

import pytest
import torch
from PIL import Image
from test_lora import full_size
from tiny_models import change_json, ldm_unet, make_pipeline
from torch import nn
from training_runs import equal, losses, weights

from hypernetworks import files
from hypernetworks.attention import find_projections, network_widths
from hypernetworks.catalog import Catalog
from hypernetworks.config import TrainingConfig, read
from hypernetworks.errors import ModelUnfit
from hypernetworks.host import Folders, GenerationRequest
from hypernetworks.hosts.diffusers import DiffusersHost
from hypernetworks.networks import new_network
from hypernetworks.prompt import extract
from hypernetworks.session import Session
from hypernetworks.trainer import HypernetworkTrainer

COUNTS = dict(
    block_out_channels=[32, 32, 64], attention_head_dim=[1, 1, 1], layers_per_block=2, transformer_layers_per_block=[1, 2, 10],
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], projection_class_embeddings_input_dim=6 * 256 + 1280,
)  # fmt: skip
QUICK = dict(
    name="ink", max_steps=2, batch_size=1, resolution=16, bucket_step=8, learning_rate="1e-2", warmup_steps=0, preview_every=0, validation_every=0,
    checkpoint_every=0, validation_share=0.0, caption_dropout=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("xl")
    make_pipeline("sdxl", text_widths=(768, 1280), pooled=1280, **COUNTS).save_pretrained(str(folder / "model"))
    return DiffusersHost(folder / "model", Folders.below(folder / "home"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """One wide picture with a caption."""
    folder = tmp_path_factory.mktemp("pictures")
    Image.effect_noise((60, 30), 50).convert("RGB").save(folder / "wide.png")
    (folder / "wide.txt").write_text("a red star")
    return folder


@pytest.fixture(scope="module")
def trained(host, pictures):
    """A trainer after a run with one pair per width, what the UNet was told in it, and the run's events."""
    told = []
    handle = host.unet.register_forward_pre_hook(lambda module, inputs, named: told.append(named | {"latents": inputs[0]}), with_kwargs=True)
    one = HypernetworkTrainer(config=QUICK | {"per_layer": False, "also_pt": True, "flip": True, "layer_structure": (1, 2, 1)})
    found = list(one.run(pictures, host))
    handle.remove()
    return one, told, found


def tree(names):
    """Empty modules with these weights' names, as sgm's UNet has them: lists where names are numbers."""
    root = nn.Module()
    children = {}
    for name in sorted(names, key=lambda name: [(part.isdigit(), int(part) if part.isdigit() else part) for part in name.split(".")]):
        parent, path = root, ()
        *parts, last = name.split(".")
        for part, following in zip(parts, [*parts[1:], last], strict=True):
            path = (*path, part)
            if path not in children:
                children[path] = nn.ModuleList() if following.isdigit() else nn.Module()
                weight = names.get(".".join((*path, "weight")))
                if weight is not None and weight.ndim == 2:
                    children[path] = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
                parent.add_module(part, children[path])
            parent = children[path]
    return root


def test_the_full_model_has_70_cross_attention_layers_under_either_naming():
    unet = full_size("sdxl")
    sgm = tree(ldm_unet(unet))
    for one in (unet, sgm):
        layers = {(p.layer, p.attention): p.in_width for p in find_projections(one) if p.part == "k"}
        assert sum(attention == "attn2" for _, attention in layers) == sum(attention == "attn1" for _, attention in layers) == 70
        assert {width for (_, attention), width in layers.items() if attention == "attn2"} == {2048}
        assert set(network_widths(one)) == {640, 1280, 2048} and len(network_widths(one, per_layer=True)) == 140
    assert network_widths(sgm, per_layer=True) == network_widths(unet, per_layer=True)
    assert list(network_widths(sgm, per_layer=True)) == list(network_widths(unet, per_layer=True))


def test_a_pt_has_the_widths_that_a1111_looks_for(tmp_path):
    """A1111 finds a network by the last size of what a layer reads (modules/hypernetworks/hypernetwork.py, `context.shape[2]`)."""
    network = new_network(full_size("sdxl"), read(TrainingConfig, {"name": "ink", "per_layer": False, "weight_initialization": "KaimingUniform"}))
    path = files.save(network, tmp_path / "ink.pt")
    state = torch.load(path, weights_only=True)
    assert sorted(key for key in state if isinstance(key, int)) == [640, 1280, 2048]
    for width in (640, 1280, 2048):
        assert len(state[width]) == 2
        for part in state[width]:
            assert part["linear.0.weight"].shape == (width // 4, width) and part["linear.1.weight"].shape == (width, width // 4)
    assert equal(weights(files.load(path)), weights(network))


def test_the_small_model_has_the_counts_of_the_large_one(host):
    layers = [p for p in find_projections(host.unet) if p.part == "k" and p.attention == "attn2"]
    assert len(layers) == 70 and {p.in_width for p in layers} == {2048}
    conditioning = host.encode_prompts(["a red star"])
    assert conditioning.context.shape == (1, 77, 2048) and conditioning.pooled.shape == (1, 1280)
    assert host.model.family == "sdxl"


def test_training_tells_the_unet_texts_and_sizes_of_each_view(host, trained):
    _, told, _ = trained
    expected = host.encode_prompts(["a red star"])
    assert len(told) == 2
    for named in told:
        torch.testing.assert_close(named["encoder_hidden_states"], expected.context)
        torch.testing.assert_close(named["added_cond_kwargs"]["text_embeds"], expected.pooled)
        height, width, top, left, target_height, target_width = named["added_cond_kwargs"]["time_ids"][0].tolist()
        assert (width, height) == (60, 30)
        assert (target_height, target_width) == tuple(host.model.latent_factor * side for side in named["latents"].shape[2:])
        scale = max(target_width / 60, target_height / 30)  # the picture covers the bucket, and what stands out is cut at both sides
        assert left == pytest.approx((60 * scale - target_width) / 2, abs=1) and top == pytest.approx((30 * scale - target_height) / 2, abs=1)
        assert max(left, top) >= 1


def test_every_network_learns_also_that_of_the_wide_context(trained):
    one, _, found = trained
    assert found[-1].kind == "finished" and all(loss == loss for loss in losses(found))
    assert one.hypernetwork.keys == (32, 64, 2048)
    last = [value for name, value in weights(one.hypernetwork).items() if name.endswith("linear.1.weight")]
    assert len(last) == 6 and all(value.abs().max() > 0 for value in last)  # they began at zero


def test_files_come_back_and_change_what_is_drawn(host, trained):
    one, _, found = trained
    safetensors, pt = (host.folders.networks / f"ink.{suffix}" for suffix in ("safetensors", "pt"))
    assert found[-1].path == safetensors
    for path in (safetensors, pt):
        assert equal(weights(files.load(path)), weights(one.hypernetwork))
    assert files.describe(safetensors).metadata["base_model_family"] == "sdxl"
    request = GenerationRequest("a red star", steps=2, width=16, height=16)
    session = Session(Catalog(host.folders.networks))
    plain, changed, none = (session.generate(host, request, extract(tag)[1])[0].tobytes() for tag in ("", "<hypernet:ink:1>", "<hypernet:ink:0>"))
    assert changed != plain and none == plain


def test_one_pair_per_layer_learns_in_all_140_layers(host, pictures):
    narrow = {"layer_structure": (1, 0.035, 1), "optimizer": "SGD"}  # or it would be 300 million weights
    one = HypernetworkTrainer(config=QUICK | {"name": "layers", "max_steps": 1, **narrow})
    list(one.run(pictures, host))
    after = weights(one.hypernetwork)
    assert len(one.hypernetwork.keys) == 140
    last = [value for name, value in after.items() if name.endswith("linear.1.weight")]
    assert len(last) == 280 and all(value.abs().max() > 0 for value in last)  # they began at zero
    assert equal(weights(files.load(host.folders.networks / "layers.safetensors")), after)


def test_a_folder_with_the_refiner_is_refused_by_name(tmp_path, host):
    shutil.copytree(host.path, tmp_path / "refiner")
    change_json(tmp_path / "refiner" / "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
    with pytest.raises(ModelUnfit, match="refiner is the SDXL refiner, which paints over a finished picture"):
        DiffusersHost(tmp_path / "refiner")
