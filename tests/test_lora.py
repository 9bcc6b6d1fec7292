"""Exported LoRA files as the web UIs and diffusers read them, and the arithmetic of deltas."""
import re

import pytest
import torch
from models import diffusers_unet
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import ldm_unet, make_pipeline

from hypernetworks.attention import Strength, find_projections
from hypernetworks.conditions import Condition
from hypernetworks.errors import ConfigError, ModelUnfit, NameRefused, TrainingFailed
from hypernetworks.generator import Hypernetwork, apply_weights
from hypernetworks.lora import concatenate, content_hash, export_lora, lora_name, scale, select_rows

NAME = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def full_size(family):
    """Stable Diffusion's UNet as its public configuration has it, without weights."""
    from diffusers import UNet2DConditionModel

    about = dict(
        sample_size=64, block_out_channels=[320, 640, 1280, 1280], cross_attention_dim=768, attention_head_dim=8, layers_per_block=2,
        down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    )
    if family == "sdxl":
        about = dict(
            sample_size=128, block_out_channels=[320, 640, 1280], cross_attention_dim=2048, attention_head_dim=[5, 10, 20], layers_per_block=2,
            down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2, up_block_types=["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
            transformer_layers_per_block=[1, 2, 10], use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    with torch.device("meta"):
        return UNet2DConditionModel(**about)


@pytest.fixture(scope="module")
def unets():
    return {family: full_size(family) for family in ("sd1", "sdxl")}


def random_weights(unet, rank=2, rows=1, seed=0, size=0.05):
    generator = torch.manual_seed(seed)
    return {
        p.name: (torch.randn(rows, rank, p.in_width, generator=generator) / p.in_width**0.5, size * torch.randn(rows, p.out_width, rank, generator=generator))
        for p in find_projections(unet)
    }


def products(weights):
    return {name: up @ down for name, (down, up) in weights.items()}


@pytest.mark.parametrize("family, modules, prefix", [("sd1", 128, "down_blocks"), ("sdxl", 560, "input_blocks")])
def test_full_models_get_as_many_modules_and_names_as_the_field_knows(family, modules, prefix, unets, tmp_path):
    projections = find_projections(unets[family])
    weights = {p.name: (torch.zeros(1, 4, p.in_width), torch.zeros(1, p.out_width, 4)) for p in projections}
    file = export_lora(weights, tmp_path / "style", family)
    with safe_open(file, framework="pt") as opened:
        names = set(opened.keys())
    assert len(weights) == modules and len(names) == 3 * modules
    assert {name.rsplit("lora_", 1)[1] for name in names if "lora_down" in name} == {"down.weight"}
    assert any(name.startswith(f"lora_unet_{prefix}") for name in names)
    if family == "sd1":
        assert sum(down.numel() + up.numel() for down, up in weights.values()) == 797_184
        assert file.stat().st_size <= 2_000_000


def test_sdxl_names_are_those_of_the_models_own_unet(unets):
    with torch.device("meta"):
        theirs = {name.removesuffix(".weight") for name in ldm_unet(unets["sdxl"]) if re.search(r"attn[12]\.to_(q|k|v|out\.0)\.weight$", name)}
    ours = {lora_name(p.name, "sdxl") for p in find_projections(unets["sdxl"])}
    assert ours == {"lora_unet_" + name.replace(".", "_") for name in theirs}
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q" in ours
    assert "lora_unet_output_blocks_5_1_transformer_blocks_1_attn2_to_out_0" in ours


def test_sd1_names_are_those_of_diffusers():
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    assert lora_name(name + ".to_q", "sd1") == "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    assert lora_name(name + ".to_out.0", "sd1") == "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"


def decoder_for(unet, **options):
    """A decoder of the full size, without weights."""
    return Hypernetwork(**options).bind(unet, initialize=False).decoder


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_a_generator_for_a_full_model_has_the_planned_number_of_parameters(unets):
    basis = decoder_for(unets["sd1"])
    assert count(basis.basis) == 32 * 797_184 == 25_509_888 and count(basis.base) == 797_184
    cross = decoder_for(unets["sd1"], target_layers=["attn2"])
    assert round(count(cross.basis) / 1e6, 1) == 12.7
    tokens = decoder_for(unets["sd1"], decoder="rank_token")
    assert round(count(tokens.heads) / 1e6, 1) == 6.9
    large = decoder_for(unets["sdxl"], target_layers=["attn2"], basis_size=16)
    assert round(count(large.basis) / 1e6, 1) == 50.3


# diffusers


def predict(pipeline, family):
    generator = torch.manual_seed(3)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    context = torch.randn(2, 5, pipeline.unet.config.cross_attention_dim, generator=generator)
    more = {"added_cond_kwargs": {"text_embeds": torch.ones(2, 48), "time_ids": torch.ones(2, 6)}} if family == "sdxl" else {}
    with torch.no_grad():
        return pipeline.unet(x, torch.tensor([10, 500]), encoder_hidden_states=context, **more).sample


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_diffusers_loads_the_exported_file_and_predicts_what_the_run_time_does(family, tmp_path):
    pytest.importorskip("peft")
    pipeline = make_pipeline(family, layers_per_block=2)
    pipeline.unet.eval()
    weights, bare, strength = random_weights(pipeline.unet, size=0.5), predict(pipeline, family), Strength(0.8, k=0.5, output=1.5)
    with apply_weights(pipeline.unet, weights, strength):
        run_time = predict(pipeline, family)
    pipeline.load_lora_weights(str(export_lora(weights, tmp_path / "style", family, strength)))
    difference = (run_time - bare).norm()
    assert difference > 0.05 * bare.norm()
    assert (predict(pipeline, family) - run_time).norm() < 1e-3 * difference


def test_half_precision_keeps_small_weights(tmp_path):
    weights = random_weights(diffusers_unet(), size=1e-7)
    stored = load_file(export_lora(weights, tmp_path / "style", "sd1"))
    for name, (down, up) in weights.items():
        key = lora_name(name, "sd1")
        product = stored[f"{key}.lora_up.weight"].float() @ stored[f"{key}.lora_down.weight"].float()
        exact = (up @ down)[0]
        assert (product - exact).norm() < 1e-3 * exact.norm()
        assert stored[f"{key}.alpha"] == down.shape[1] and stored[f"{key}.lora_up.weight"].dtype == torch.float16


def test_the_name_has_the_contents_hash_and_the_header_what_web_uis_ask_for(tmp_path):
    weights = random_weights(diffusers_unet())
    file = export_lora(weights, tmp_path / "style", "sd1", metadata={"ss_training_comment": "a picture", "ss_v2": "True"})
    digest = content_hash(load_file(file))
    with safe_open(file, framework="pt") as opened:
        about = opened.metadata()
    assert (about["ss_base_model_version"], about["ss_v2"]) == ("sd_v1", "False")
    assert (about["ss_network_module"], about["ss_network_dim"], about["ss_network_alpha"]) == ("networks.lora", "2", "2.0")
    assert about["ss_training_comment"] == "a picture" and about["sshs_model_hash"] == digest
    again, other = export_lora(weights, tmp_path / "style", "sd1"), export_lora(weights, tmp_path / "style", "sd1", 0.5)
    assert file.name == f"style-{digest[:10]}.safetensors" == again.name != other.name


def test_an_sdxl_file_says_that_it_is_one(tmp_path):
    weights = {NAME: (torch.ones(1, 2, 8), torch.ones(1, 8, 2))}
    with safe_open(export_lora(weights, tmp_path / "style", "sdxl"), framework="pt") as opened:
        assert opened.metadata()["ss_base_model_version"].startswith("sdxl_")
        assert "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q.alpha" in opened.keys()


def test_strength_0_exports_a_file_that_does_nothing(tmp_path):
    stored = load_file(export_lora(random_weights(diffusers_unet()), tmp_path / "style", "sd1", 0))
    assert not any(tensor.any() for name, tensor in stored.items() if "lora_up" in name)


def test_what_no_lora_file_holds_is_refused(tmp_path):
    weights = {NAME: (torch.ones(1, 2, 8), torch.ones(1, 8, 2))}
    two = {NAME: (torch.ones(2, 2, 8), torch.ones(2, 8, 2))}
    for refused, error in (
        (lambda: export_lora(two, tmp_path / "a", "sd1"), ConfigError),
        (lambda: export_lora({}, tmp_path / "a", "sd1"), ConfigError),
        (lambda: export_lora(weights, tmp_path / "a", "flux"), ConfigError),
        (lambda: export_lora(weights, tmp_path / "a", "sd1", torch.ones(2)), ConfigError),
        (lambda: export_lora(weights, tmp_path / "a?", "sd1"), NameRefused),
        (lambda: export_lora(scale(weights, float("nan")), tmp_path / "a", "sd1"), TrainingFailed),
        (lambda: export_lora(scale(weights, 1e30), tmp_path / "a", "sd1"), TrainingFailed),
        (lambda: export_lora({"encoder.layer": weights[NAME]}, tmp_path / "a", "sd1"), ModelUnfit),
        (lambda: lora_name("head." + NAME, "sd1"), ModelUnfit),
        (lambda: lora_name("down_blocks.1.attentions.2.transformer_blocks.0.attn1.to_q", "sdxl"), ModelUnfit),
    ):
        with pytest.raises(error):
            refused()
    assert list(tmp_path.iterdir()) == []


# arithmetic


def test_two_sets_of_weights_add_exactly_by_concatenating_ranks():
    unet = diffusers_unet()
    first, second = random_weights(unet, rows=3), random_weights(unet, rank=3, seed=1)
    del second[NAME]
    total, one, two = products(concatenate(first, second)), products(first), products(second)
    assert total.keys() == one.keys()
    for name in total:
        assert torch.allclose(total[name], one[name] + two.get(name, 0), atol=1e-6)


def test_scaling_and_choosing_rows_act_on_the_deltas():
    weights = random_weights(diffusers_unet(), rows=3)
    whole, half, chosen = products(weights), products(scale(weights, 0.5)), products(select_rows(weights, torch.tensor([2, 0, 0])))
    for name, delta in whole.items():
        assert torch.allclose(half[name], 0.5 * delta, atol=1e-7)
        assert torch.equal(chosen[name], delta[[2, 0, 0]])


def test_a_blend_of_two_conditions_is_exported_too(tmp_path):
    network = Hypernetwork(embedding_dim=8, hidden_dim=8, rank=2, basis_size=2).bind(diffusers_unet())
    weights = network.generate_weights(Condition(text=torch.ones(1, 16)).blended(Condition.none(), 0.5))
    with safe_open(export_lora(weights, tmp_path / "blend", "sd1"), framework="pt") as opened:
        assert opened.metadata()["ss_network_dim"] == "4"
