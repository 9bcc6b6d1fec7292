"""Small whole Stable Diffusion models of each family with random weights, in diffusers' layout and in CompVis' single-file layout."""
import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file

from hypernetworks.embedded import MODEL
from hypernetworks.hosts import vocabulary

FAMILIES = ("sd1", "sd2", "sdxl")


def make_pipeline(family, tokens=662, context=None, text_widths=(64, 128), pooled=48, **unet_changes):
    """A diffusers pipeline. `tokens` is the size of the vocabulary; the embedded model's tokenizer has 662. `text_widths` and `pooled` are SDXL's."""
    import diffusers
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(0)
    sdxl = family == "sdxl"
    context = context or {"sd1": 32, "sd2": 64, "sdxl": sum(text_widths)}[family]
    parts = dict(
        vae=diffusers.AutoencoderKL(
            block_out_channels=[32, 32], down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
            layers_per_block=1, latent_channels=4, scaling_factor=0.13025 if sdxl else 0.18215),
        scheduler=diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1,
            prediction_type="v_prediction" if family == "sd2" else "epsilon"),
        tokenizer=CLIPTokenizer.from_pretrained(str(MODEL / "tokenizer")),
        unet=make_unet(family, context, **unet_changes),
        text_encoder=CLIPTextModel(text_config(text_widths[0] if sdxl else context, tokens, "gelu" if family == "sd2" else "quick_gelu")),
    )
    if sdxl:
        parts["tokenizer_2"] = parts["tokenizer"]
        parts["text_encoder_2"] = CLIPTextModelWithProjection(text_config(text_widths[1], tokens, "gelu", pooled))
        return diffusers.StableDiffusionXLPipeline(**parts)
    return diffusers.StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def text_config(width, tokens, activation, pooled=48):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=tokens, hidden_size=width, intermediate_size=64, num_hidden_layers=2, num_attention_heads=max(1, width // 64),
        projection_dim=pooled, hidden_act=activation, bos_token_id=tokens - 2, eos_token_id=tokens - 1, pad_token_id=tokens - 1)


def make_unet(family, context, **changes):
    from diffusers import UNet2DConditionModel

    down = ["DownBlock2D", "CrossAttnDownBlock2D"] if family == "sdxl" else ["CrossAttnDownBlock2D", "DownBlock2D"]
    about = dict(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=[32, 64], cross_attention_dim=context,
        down_block_types=down, up_block_types=[kind.replace("Down", "Up") for kind in reversed(down)],
        attention_head_dim=8 if family == "sd1" else [1, 1], use_linear_projection=family != "sd1")
    if family == "sdxl":
        about |= dict(
            transformer_layers_per_block=[1, 2], addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=6 * 256 + 48)
    return UNet2DConditionModel(**about | changes)


def write_vocabulary(folder):
    """A stand-in for CLIP's vocabulary beside checkpoints in `folder`: as many merges, each of two single characters."""
    alphabet = vocabulary._alphabet()
    merges = [f"{alphabet[i // 256]} {alphabet[i % 256]}" for i in range(vocabulary.MERGES)]
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")


def to_single_file(pipeline, family, path: Path, metadata=None, extra=None):
    """Writes the pipeline's weights under the names of CompVis' ldm, as checkpoints on the web have them."""
    weights = {"model.diffusion_model." + name: weight for name, weight in ldm_unet(pipeline.unet).items()}
    weights |= {"first_stage_model." + name: weight for name, weight in ldm_vae(pipeline.vae).items()}
    if family == "sd2":
        weights |= open_clip(pipeline.text_encoder, "cond_stage_model.model.")
    else:
        prefix = "cond_stage_model." if family == "sd1" else "conditioner.embedders.0."
        named = {name.removeprefix("text_model."): weight for name, weight in pipeline.text_encoder.state_dict().items()}
        weights |= {f"{prefix}transformer.text_model.{name}": weight for name, weight in named.items() if "position_ids" not in name}
    if family == "sdxl":
        weights |= open_clip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    weights |= extra or {}
    save_file({name: weight.detach().clone().contiguous() for name, weight in weights.items()}, path, metadata)


def ldm_unet(unet):
    layers, names = unet.config.layers_per_block, {}
    attention = {f"up_blocks.{i}": hasattr(block, "attentions") for i, block in enumerate(unet.up_blocks)}

    def place(match):
        side, i, kind, j = match[1], int(match[2]), match[3], int(match[4])
        if side == "down":
            entry, part = (layers + 1) * i + 1 + (layers if kind == "downsamplers" else j), 1 if kind == "attentions" else 0
            return f"input_blocks.{entry}.{part}."
        entry, part = (layers + 1) * i + (layers if kind == "upsamplers" else j), {"resnets": 0, "attentions": 1}.get(kind)
        return f"output_blocks.{entry}.{part if part is not None else 1 + attention[f'up_blocks.{i}']}."

    for name, weight in unet.state_dict().items():
        ldm = re.sub(r"^(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.", place, name)
        ldm = re.sub(r"^mid_block\.resnets\.(\d)\.", lambda match: f"middle_block.{2 * int(match[1])}.", ldm)
        ldm = ldm.replace("mid_block.attentions.0.", "middle_block.1.")
        if ".0.conv." in ldm and "samplers" not in ldm and "input_blocks" in ldm:
            ldm = ldm.replace(".0.conv.", ".0.op.")
        for old, new in (
            ("conv_in.", "input_blocks.0.0."), ("conv_norm_out.", "out.0."), ("conv_out.", "out.2."), ("time_embedding.linear_1", "time_embed.0"),
            ("time_embedding.linear_2", "time_embed.2"), ("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2"),
        ):
            ldm = new + ldm[len(old):] if ldm.startswith(old) else ldm
        if "_block" in ldm and "transformer_blocks" not in ldm:
            for old, new in (("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"), ("conv2", "out_layers.3"),
                             ("time_emb_proj", "emb_layers.1"), ("conv_shortcut", "skip_connection")):
                ldm = ldm.replace(f".{old}.", f".{new}.")
        names[ldm] = weight
    return names


def ldm_vae(vae):
    levels, names = len(vae.config.block_out_channels), {}
    for name, weight in vae.state_dict().items():
        ldm = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)\.", r"down.\1.block.\2.", name)
        ldm = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample.", ldm)
        ldm = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}.", ldm)
        ldm = re.sub(r"up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"up.{levels - 1 - int(m[1])}.upsample.", ldm)
        ldm = re.sub(r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", ldm)
        ldm = ldm.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        if "mid_block.attentions.0." in ldm:
            ldm = ldm.replace("mid_block.attentions.0.", "mid.attn_1.").replace("group_norm", "norm").replace("to_out.0", "proj_out")
            ldm = re.sub(r"\.to_([qkv])\.", r".\1.", ldm)
            weight = weight[..., None, None] if weight.ndim == 2 else weight
        names[ldm] = weight
    return names


def open_clip(encoder, prefix):
    weights = {name.removeprefix("text_model."): weight for name, weight in encoder.state_dict().items() if "position_ids" not in name}
    names = {
        "token_embedding.weight": weights.pop("embeddings.token_embedding.weight"),
        "positional_embedding": weights.pop("embeddings.position_embedding.weight"),
    }
    if "text_projection.weight" in weights:
        names["text_projection"] = weights.pop("text_projection.weight").T
    for name, weight in weights.items():
        layer = re.match(r"encoder\.layers\.(\d+)\.(.+)", name)
        if not layer:
            names[name.replace("final_layer_norm", "ln_final")] = weight
            continue
        block = f"transformer.resblocks.{layer[1]}."
        part = re.match(r"self_attn\.([qkv])_proj\.(weight|bias)", layer[2])
        if part:
            if part[1] == "q":
                joined = [weights[name.replace("q_proj", f"{p}_proj")] for p in "qkv"]
                names[f"{block}attn.in_proj_{part[2]}"] = torch.cat(joined)
            continue
        rest = layer[2]
        for old, new in (("layer_norm", "ln_"), ("self_attn", "attn"), ("fc1", "c_fc"), ("fc2", "c_proj")):
            rest = rest.replace(old, new)
        names[block + rest] = weight
    return {prefix + name: weight for name, weight in names.items()}


def change_json(path: Path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
