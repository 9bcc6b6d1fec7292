"""The arguments of A1111's REST routes for hypernetworks, as our options (modules/hypernetworks/hypernetwork.py: `create_hypernetwork`,
`train_hypernetwork`; docs/api.md lists what becomes of each)."""
from __future__ import annotations

import difflib
import json
import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from .config import TrainingConfig, options
from .errors import ConfigError
from .schedule import parse_stages

if TYPE_CHECKING:
    from .files import FileFacts

CONTEXT_WIDTHS = {768, 1024, 2048}  # of the text encoders of Stable Diffusion 1, 2 and XL; no self-attention has these
CREATE = {
    "name": "name", "layer_structure": "layer_structure", "activation_func": "activation", "weight_init": "weight_initialization",
    "add_layer_norm": "layer_norm",
}  # fmt: skip
CREATE_MORE = ("enable_sizes", "overwrite_old", "use_dropout", "dropout_structure")
TRAIN = {
    "hypernetwork_name": "name", "learn_rate": "learning_rate", "batch_size": "batch_size", "gradient_step": "gradient_accumulation",
    "data_root": "dataset", "steps": "max_steps", "shuffle_tags": "shuffle_tags", "tag_drop_out": "tag_dropout",
    "create_image_every": "preview_every", "save_hypernetwork_every": "checkpoint_every",
}  # fmt: skip
TRAIN_MORE = (
    "training_width", "training_height", "clip_grad_mode", "clip_grad_value", "latent_sampling_method", "use_weight", "template_filename",
    "preview_from_txt2img", "preview_prompt",
)  # fmt: skip
PREVIEW = {
    "preview_negative_prompt": "n", "preview_width": "w", "preview_height": "h", "preview_seed": "d", "preview_cfg_scale": "l", "preview_steps": "s",
    "preview_sampler_name": "ss",
}  # fmt: skip
"""Argument -> flag of a line of preview prompts (preview_lines.py)."""
WITHOUT_EFFECT = ("id_task", "log_directory", "varsize")
TEMPLATES = {
    "hypernetwork.txt": "[filewords]", "style_filewords.txt": "[filewords], [name]", "subject_filewords.txt": "[name], [filewords]",
    "style.txt": "[name]", "subject.txt": "[name]", "none.txt": "picture",
}  # fmt: skip
SAMPLED = {"once": False, "deterministic": False, "random": True}


def creation(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an untrained network with one pair per width.

    `enable_sizes` only decides between self-attention and cross-attention: the widths are always the loaded model's, all of them.
    Raises `ConfigError` for an unknown argument.
    """
    given = _given(arguments, CREATE, CREATE_MORE)
    values = {"layer_structure": (1, 2, 1), "activation": "linear", "weight_initialization": "Normal", **_renamed(given, CREATE)}
    values |= {"per_layer": False, "target_layers": target_layers(given.get("enable_sizes", ("768", "320", "640", "1280")))}
    if given.get("use_dropout") and given.get("dropout_structure"):
        values["dropout_structure"] = given["dropout_structure"]
    return values


def target_layers(sizes: Collection[int | str]) -> tuple[str, ...]:
    """The attention layers that pairs of these widths serve. Raises `ConfigError` for what are no widths."""
    try:
        widths = {int(size) for size in ([] if isinstance(sizes, str) else sizes)}
    except (TypeError, ValueError, OverflowError):
        raise ConfigError("enable_sizes is a list of widths, such as 768 and 320.") from None
    if not widths:
        raise ConfigError("enable_sizes names no width; 768 is that of Stable Diffusion 1's prompts.")
    served = {"attn1": widths - CONTEXT_WIDTHS, "attn2": widths & CONTEXT_WIDTHS}
    return tuple(attention for attention, found in served.items() if found)


def training(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a run; what A1111 does not ask for has our default values, but for the rate, which is said in full.

    Raises `ConfigError` for an unknown argument.
    """
    given = _given(arguments, TRAIN, (*TRAIN_MORE, *PREVIEW, *WITHOUT_EFFECT))
    values = {"learning_rate": "1e-5", "batch_size": 1, "rate_schedule": "constant", "warmup_steps": 0, **_renamed(given, TRAIN)}
    if given.get("use_weight"):
        values |= {"masks": "alpha", "normalize_masks": True}
    if "training_width" in given or "training_height" in given:
        values["resolution"] = _resolution(given)
    if "clip_grad_mode" in given:
        values |= _clipping(given["clip_grad_mode"], given.get("clip_grad_value", 0.1))
    if "latent_sampling_method" in given:
        values["sample_latents"] = _chosen(given, "latent_sampling_method", SAMPLED)
    if "template_filename" in given:
        values["caption_template"] = _chosen(given, "template_filename", TEMPLATES)
    return values | ({"preview_prompts": _preview_line(given)} if given.get("preview_from_txt2img") else {})


def network_options(facts: FileFacts) -> dict[str, Any]:
    """The options that a network like this one is made with, so that its training can go on."""
    structure = facts.structure
    if facts.per_layer:
        layers = tuple(layer for layer in ("attn1", "attn2") if any(f".{layer}" in str(key) for key in facts.keys))
    else:
        layers = _noted_layers(facts) or target_layers(facts.keys)
    return {
        "per_layer": facts.per_layer, "target_layers": layers, "description": facts.description,
        "layer_structure": structure.layer_structure, "activation": structure.activation, "layer_norm": structure.layer_norm,
        "dropout_structure": structure.dropout_structure, "activate_output": structure.activate_output,
        "skip_connection": structure.skip_connection, "upsample_linear": structure.upsample_linear,
    }  # fmt: skip


def _noted_layers(facts: FileFacts) -> tuple[str, ...]:
    """What the file says of how it was made, () where it says nothing."""
    try:
        noted = json.loads(facts.metadata["settings"]).get("target_layers", TrainingConfig.target_layers)
        return options(TrainingConfig)["target_layers"].check(noted)
    except (ConfigError, KeyError, ValueError, AttributeError, RecursionError):
        return ()


def _given(arguments: Mapping[str, Any], *known: Collection[str]) -> dict[str, Any]:
    """The arguments that hold a value; null stands for A1111's default."""
    names = [name for names in known for name in names]
    for name in arguments:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise ConfigError(f"There is no argument {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
    return {name: value for name, value in arguments.items() if value is not None}


def _renamed(given: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names[name]: value for name, value in given.items() if name in names}


def _resolution(given: Mapping[str, Any]) -> int:
    """The side of a square of as many pixels; pictures keep their own aspect ratios."""
    check = options(TrainingConfig)["resolution"].check
    width, height = (check(given.get(f"training_{side}", 512)) for side in ("width", "height"))
    return round(math.sqrt(width * height))


def _clipping(mode: Any, value: Any) -> dict[str, Any]:
    """One number is the limit itself; several, as in 1:100, 0.1, are multiples of the limit 1."""
    if mode not in ("disabled", "norm", "value"):
        raise ConfigError(f"clip_grad_mode cannot be {mode!r}: it takes disabled, norm or value.")
    values = {"clip_norm": 0.0, "clip_value": 0.0}
    if mode == "disabled":
        return values
    stages = parse_stages(value, "clip_grad_value")
    if len(stages) == 1:
        return values | {f"clip_{mode}": stages[0][0]}
    return values | {f"clip_{mode}": 1.0, "clip_schedule": value}


def _chosen(given: Mapping[str, Any], name: str, choices: Mapping[str, Any]) -> Any:
    value = given[name]
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{name} cannot be {value!r}: it takes one of {', '.join(choices)}.")
    return choices[value]


def _preview_line(given: Mapping[str, Any]) -> str:
    said = {flag: given[name] for name, flag in PREVIEW.items() if given.get(name) not in (None, "")}
    if said.get("d") == -1:  # A1111's sign for a random one
        del said["d"]
    parts = [given.get("preview_prompt", ""), *(f"--{flag} {value}" for flag, value in said.items())]
    return " ".join(" ".join(map(str, parts)).split())  # a prompt of several lines would be several prompts
