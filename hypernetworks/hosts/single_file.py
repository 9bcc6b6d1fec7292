"""Stable Diffusion in one .safetensors file (CompVis' layout): recognised, refused or described from its header alone.

diffusers converts such files but takes their configuration from the network. Here it is read off the weights' names and shapes
and written as a folder of configurations, so that nothing is ever downloaded. Names as in CompVis' ldm/modules/diffusionmodules/
openaimodel.py (UNet) and model.py (autoencoder).
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import ModelUnfit
from . import vocabulary

UNET = "model.diffusion_model."
VAE = "first_stage_model."
HF_CLIP = {"sd1": "cond_stage_model.transformer.text_model.", "sdxl": "conditioner.embedders.0.transformer.text_model."}
OPEN_CLIP = {"sd2": "cond_stage_model.model.", "sdxl": "conditioner.embedders.1.model."}
SCALING_FACTORS = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}
PIPELINES = {"sd1": "StableDiffusionPipeline", "sd2": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}
WANTED = "a Stable Diffusion 1.x, 2.x or SDXL model"

Shapes = Mapping[str, tuple[int, ...]]

OTHER_KINDS = (  # part of a weight's name -> what the file is
    ("lora_down.", "a LoRA"),
    ("lora_A.", "a LoRA"),
    ("lora_unet_", "a LoRA"),
    ("hada_w1_", "a LyCORIS"),
    ("control_model.", "a ControlNet"),
    ("controlnet_cond_embedding.", "a ControlNet"),
    ("emb_params", "a textual inversion embedding"),
    ("joint_blocks.", "a Stable Diffusion 3 model"),
    ("double_blocks.", "a Flux model"),
    ("edm_mean", "a Playground 2.5 model"),
    ("conditioner.embedders.0.model.", "the SDXL refiner, which paints over a finished picture"),
    ("down_blocks.0.", "one part of a model in diffusers' layout: choose the folder that holds model_index.json"),
)


@dataclass(frozen=True)
class SingleFile:
    """A checkpoint that was recognised. `prediction_type` is None where neither the file nor a .yaml beside it says."""

    path: Path
    family: str  # "sd1", "sd2" or "sdxl"
    prediction_type: str | None
    zero_terminal_snr: bool
    shapes: Shapes = field(repr=False)
    heads: Mapping[str, int] = field(default_factory=dict)  # ldm's num_heads or num_head_channels, from the .yaml

    @property
    def pipeline(self) -> str:
        """The name of diffusers' class for it."""
        return PIPELINES[self.family]


def recognise(path: Path) -> SingleFile:
    """What the file holds, from its header. Raises `ModelUnfit` for anything but a whole Stable Diffusion 1.x, 2.x or SDXL."""
    shapes, metadata = _read_header(path)
    for part, kind in OTHER_KINDS:
        if any(part in name for name in shapes):
            raise ModelUnfit(f"{path.name} is {kind}; this needs {WANTED}.")
    entry = shapes.get(UNET + "input_blocks.0.0.weight")
    if entry is None or not any(name.endswith("attn2.to_k.weight") for name in shapes):
        raise ModelUnfit(f"{path.name} holds no Stable Diffusion UNet; this needs {WANTED}.")
    if entry[1] != 4:
        kind = "an inpainting model" if entry[1] == 9 else f"a model whose UNet takes {entry[1]} channels"
        raise ModelUnfit(f"{path.name} is {kind}; this needs {WANTED} that makes pictures from text alone.")
    if VAE + "decoder.conv_in.weight" not in shapes or VAE + "encoder.conv_in.weight" not in shapes:
        raise ModelUnfit(f"{path.name} has no autoencoder (VAE) in it; use the full checkpoint.")
    family, settings = _family(path, shapes), _ldm_settings(path)
    prediction, zero_snr = _prediction_type(family, shapes, metadata, settings)
    unet = settings.get("unet_config", {}).get("params", {})
    heads = {name: unet[name] for name in ("num_heads", "num_head_channels") if unet.get(name, -1) != -1}
    return SingleFile(path, family, prediction, zero_snr, shapes, heads)


def _read_header(path: Path) -> tuple[Shapes, Mapping[str, str]]:
    if path.suffix.lower() != ".safetensors":
        raise ModelUnfit(f"{path.name} is not a .safetensors file; other formats can run code while they are read.")
    try:
        with safe_open(str(path), "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelUnfit(f"{path.name} is damaged or no safetensors file at all ({error}).") from error


def _family(path: Path, shapes: Shapes) -> str:
    if OPEN_CLIP["sdxl"] + "positional_embedding" in shapes and HF_CLIP["sdxl"] + "embeddings.token_embedding.weight" in shapes:
        return "sdxl"
    if OPEN_CLIP["sd2"] + "positional_embedding" in shapes:
        return "sd2"
    if HF_CLIP["sd1"] + "embeddings.token_embedding.weight" in shapes:
        return "sd1"
    raise ModelUnfit(f"{path.name} has no text encoder of a known layout in it; use the full checkpoint.")


def _ldm_settings(path: Path) -> Mapping[str, Any]:
    """`model.params` of the .yaml beside the checkpoint, which A1111 reads as well; empty where there is none."""
    beside = path.with_suffix(".yaml")
    if not beside.is_file():
        return {}
    import yaml  # comes with transformers

    try:
        return yaml.safe_load(beside.read_text(encoding="utf-8"))["model"]["params"]
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ModelUnfit(f"{beside.name} is no configuration of a Stable Diffusion model ({error}).") from error


def _prediction_type(
    family: str, shapes: Shapes, metadata: Mapping[str, str], settings: Mapping[str, Any]
) -> tuple[str | None, bool]:
    """(prediction type or None, zero terminal SNR) from the .yaml, the marks that trainers leave, or the metadata."""
    if "parameterization" in settings:
        return ("v_prediction" if settings["parameterization"] == "v" else "epsilon"), False
    if "v_pred" in shapes:
        return "v_prediction", "ztsnr" in shapes
    stated = metadata.get("modelspec.prediction_type", "").lower()
    if stated in ("v", "v_prediction", "epsilon"):
        return ("epsilon" if stated == "epsilon" else "v_prediction"), False
    return (None if family == "sd2" else "epsilon"), False


def write_configurations(model: SingleFile, folder: Path) -> None:
    """The configurations of every part in diffusers' layout, as if `model` were a diffusers folder without weights."""
    merges = vocabulary.find_merges(model.path)
    parts: dict[str, tuple[str, str, Mapping[str, Any] | None]] = {
        "unet": ("diffusers", "UNet2DConditionModel", unet_configuration(model)),
        "vae": ("diffusers", "AutoencoderKL", vae_configuration(model)),
        "scheduler": ("diffusers", "DDIMScheduler", scheduler_configuration(model)),
        "tokenizer": ("transformers", "CLIPTokenizer", None),
        "text_encoder": ("transformers", "CLIPTextModel", text_configuration(model)),
    }
    vocabulary.write_tokenizer(folder / "tokenizer", merges, "!" if model.family == "sd2" else vocabulary.END)
    if model.family == "sdxl":
        parts["tokenizer_2"] = ("transformers", "CLIPTokenizer", None)
        parts["text_encoder_2"] = ("transformers", "CLIPTextModelWithProjection", open_clip_configuration(model))
        vocabulary.write_tokenizer(folder / "tokenizer_2", merges, "!")
    for name, (_, _, configuration) in parts.items():
        if configuration is not None:
            (folder / name).mkdir()
            file = "scheduler_config.json" if name == "scheduler" else "config.json"
            (folder / name / file).write_text(json.dumps(configuration), encoding="utf-8")
    index = {name: [library, kind] for name, (library, kind, _) in parts.items()}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": model.pipeline, **index}), encoding="utf-8")


def unet_configuration(model: SingleFile) -> dict[str, Any]:
    """Of diffusers' UNet2DConditionModel. A lone downsampler ends a level of `input_blocks`; attention stands second."""
    shapes, levels, i = model.shapes, [[]], 1
    while True:
        entry = f"{UNET}input_blocks.{i}."
        if entry + "0.op.weight" in shapes:
            levels.append([])
        elif entry + "0.out_layers.3.weight" in shapes:
            levels[-1].append((shapes[entry + "0.out_layers.3.weight"][0], _depth(shapes, entry + "1.")))
        else:
            break
        i += 1
    middle = _depth(shapes, UNET + "middle_block.1.")
    per_level = {len(level) for level in levels}
    even = len(per_level) == 1 and all(len(set(level)) == 1 for level in levels)
    if not even or not middle or levels[-1][0][1] not in (0, middle):
        raise ModelUnfit(f"{model.path.name} has a UNet of an unusual layout (a pruned or merged one); this needs {WANTED}.")
    channels, depths = [level[0][0] for level in levels], [level[0][1] for level in levels]
    prefix = next(name for name in shapes if name.startswith(UNET) and name.endswith("attn2.to_k.weight"))
    configuration = dict(
        sample_size={"sd1": 64, "sd2": 64, "sdxl": 128}[model.family],
        in_channels=4, out_channels=4, block_out_channels=channels, layers_per_block=per_level.pop(),
        down_block_types=["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        up_block_types=["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        transformer_layers_per_block=[*(depth or 1 for depth in depths[:-1]), middle],
        cross_attention_dim=shapes[prefix][1],
        attention_head_dim=_heads(model, channels),
        use_linear_projection=len(shapes[prefix.rsplit(".transformer_blocks.", 1)[0] + ".proj_in.weight"]) == 2,
        upcast_attention=model.family == "sd2",  # overflows in half precision
    )
    if model.family == "sdxl":
        width = shapes[UNET + "label_emb.0.0.weight"][1]
        configuration |= dict(
            addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=width)
    return configuration


def _depth(shapes: Shapes, prefix: str) -> int:
    """How many transformer blocks there are below `prefix`."""
    depth = 0
    while f"{prefix}transformer_blocks.{depth}.attn2.to_k.weight" in shapes:
        depth += 1
    return depth


def _heads(model: SingleFile, channels: list[int]) -> list[int]:
    """Heads per level (diffusers' `attention_head_dim` counts heads): 8 in Stable Diffusion 1, of width 64 in the later ones."""
    if "num_head_channels" in model.heads or ("num_heads" not in model.heads and model.family != "sd1"):
        return [max(1, c // model.heads.get("num_head_channels", 64)) for c in channels]
    return [model.heads.get("num_heads", 8)] * len(channels)


def vae_configuration(model: SingleFile) -> dict[str, Any]:
    """Of diffusers' AutoencoderKL."""
    shapes, channels = model.shapes, []
    while (name := f"{VAE}encoder.down.{len(channels)}.block.0.conv1.weight") in shapes:
        channels.append(shapes[name][0])
    per_level = 0
    while f"{VAE}encoder.down.0.block.{per_level}.conv1.weight" in shapes:
        per_level += 1
    return dict(
        in_channels=3, out_channels=3, block_out_channels=channels, layers_per_block=per_level,
        down_block_types=["DownEncoderBlock2D"] * len(channels), up_block_types=["UpDecoderBlock2D"] * len(channels),
        latent_channels=shapes[VAE + "decoder.conv_in.weight"][1], scaling_factor=SCALING_FACTORS[model.family])


def scheduler_configuration(model: SingleFile) -> dict[str, Any]:
    """The noise schedule that all three families share. Zero terminal SNR needs sampling steps that start at the very end."""
    return dict(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type=model.prediction_type or "epsilon",
        rescale_betas_zero_snr=model.zero_terminal_snr, timestep_spacing="trailing" if model.zero_terminal_snr else "leading")


def text_configuration(model: SingleFile) -> dict[str, Any]:
    """Of the first text encoder: OpenAI's CLIP, or in Stable Diffusion 2 OpenCLIP, whose 24th layer is not used."""
    if model.family == "sd2":
        configuration = open_clip_configuration(model)
        return configuration | {"num_hidden_layers": min(23, configuration["num_hidden_layers"])}
    prefix = HF_CLIP[model.family]
    return _clip(
        model, prefix + "embeddings.token_embedding.weight", prefix + "embeddings.position_embedding.weight",
        prefix + "encoder.layers.{}.mlp.fc1.weight", "quick_gelu")


def open_clip_configuration(model: SingleFile) -> dict[str, Any]:
    """Of an OpenCLIP text encoder, with its projection's width."""
    prefix = OPEN_CLIP[model.family]
    configuration = _clip(
        model, prefix + "token_embedding.weight", prefix + "positional_embedding",
        prefix + "transformer.resblocks.{}.mlp.c_fc.weight", "gelu")
    projection = model.shapes.get(prefix + "text_projection", (0, configuration["hidden_size"]))
    return configuration | {"projection_dim": projection[1]}


def _clip(model: SingleFile, tokens: str, positions: str, layer: str, activation: str) -> dict[str, Any]:
    shapes, layers = model.shapes, 0
    while layer.format(layers) in shapes:
        layers += 1
    size, width = shapes[tokens]
    if size != vocabulary.SIZE or not layers:
        raise ModelUnfit(f"{model.path.name} has a text encoder that is not CLIP ({size} tokens instead of {vocabulary.SIZE}).")
    return dict(
        model_type="clip_text_model", vocab_size=size, hidden_size=width, max_position_embeddings=shapes[positions][0],
        num_hidden_layers=layers, num_attention_heads=max(1, width // 64), intermediate_size=shapes[layer.format(0)][0],
        hidden_act=activation, bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1)
