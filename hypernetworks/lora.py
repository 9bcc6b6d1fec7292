"""Generated weights as ordinary low-rank adaptations (LoRA, Hu et al. 2021): arithmetic on them, and files that every web UI
reads."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from .attention import BLOCKS, PROJECTION, Strength
from .errors import ConfigError, ModelUnfit, TrainingFailed
from .files import check_name
from .headers import write_safetensors

Weights = Mapping[str, tuple[Tensor, Tensor]]
"""Projection name (as `attention.Projection.name`) -> A [b, r, in], B [b, out, r]; the delta is B @ A."""

# ss_base_model_version, ss_v2 and modelspec.architecture as kohya's sd-scripts write them. A1111 tells the families apart by
# the first
# two (extensions-builtin/Lora/network.py, class NetworkOnDisk).
_FAMILIES = {
    "sd1": ("sd_v1", "False", "stable-diffusion-v1/lora"),
    "sd2": ("sd_v2_v", "True", "stable-diffusion-v2-768-v/lora"),
    "sdxl": ("sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora"),
}
_SDXL_BLOCK = re.compile(r"^(down_blocks|up_blocks)\.(\d)\.attentions\.(\d)\.|^mid_block\.attentions\.0\.")
_SDXL_RESNETS = 2  # per level on the way down; one more on the way up


def concatenate(first: Weights, second: Weights) -> dict[str, tuple[Tensor, Tensor]]:
    """The sum of both deltas, exactly: ranks side by side. Rows of a batch stay apart; one row is added to all rows of the
    other."""
    joined = {}
    for name in (*first, *(name for name in second if name not in first)):
        if name not in first or name not in second:
            joined[name] = (first if name in first else second)[name]
            continue
        (down, up), (more_down, more_up) = first[name], second[name]
        rows = max(len(down), len(more_down))
        joined[name] = (
            torch.cat([down.expand(rows, -1, -1), more_down.expand(rows, -1, -1)], -2),
            torch.cat([up.expand(rows, -1, -1), more_up.expand(rows, -1, -1)], -1),
        )
    return joined


def scale(weights: Weights, factor: float) -> dict[str, tuple[Tensor, Tensor]]:
    """The deltas times a number: B alone takes it."""
    return {name: (down, factor * up) for name, (down, up) in weights.items()}


def folded(weights: Weights, strength: Strength) -> dict[str, tuple[Tensor, Tensor]]:
    """The deltas times the strength at each projection: B alone takes it. Raises `ConfigError` for a strength of several rows."""
    if isinstance(strength.overall, Tensor):
        raise ConfigError("A LoRA file holds one strength for all pictures: export with a single number.")
    return {name: (down, _factor(name, strength) * up) for name, (down, up) in weights.items()}


def select_rows(weights: Weights, index: Sequence[int] | Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """For each row of a UNet's batch the weights of the condition with that number."""
    index = torch.as_tensor(index)
    return {name: (down[index.to(down.device)], up[index.to(up.device)]) for name, (down, up) in weights.items()}


def export_lora(
    weights: Weights,
    path: str | Path,
    family: str,
    strength: float | Strength = 1.0,
    *,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Writes `<name>-<content hash>.safetensors` for the folder and name in `path`, and returns where it is.

    A1111, Forge, ComfyUI and diffusers read it. `family`: "sd1", "sd2" or "sdxl". The strength, also by part and block,
    becomes a part of the weights. The hash stands in the name because Forge keeps LoRAs by file name. `metadata` is added to
    the header.
    Raises `ConfigError` for what no LoRA file holds (weights of several conditions, a strength per row), `ModelUnfit` for
    layers that the family has no name for, `TrainingFailed` for weights that are not finite or cannot be written.
    """
    path = Path(path)
    if family not in _FAMILIES:
        raise ConfigError(f"A LoRA file is for one of {', '.join(_FAMILIES)}, not for {family!r}.")
    if not weights:
        raise ConfigError("There are no weights to export.")
    tensors: dict[str, Tensor] = {}
    for name, (down, up) in folded(weights, strength if isinstance(strength, Strength) else Strength(strength)).items():
        if len(down) != 1 or len(up) != 1:
            raise ConfigError(
                f"A LoRA file holds the weights of one condition, and these are of {len(down)}: export them one by one."
            )
        stored = lora_name(name, family)
        down, up = _balanced(down[0].detach().float().cpu(), up[0].detach().float().cpu())
        tensors[f"{stored}.lora_down.weight"] = down.to(dtype).contiguous()
        tensors[f"{stored}.lora_up.weight"] = up.to(dtype).contiguous()
        tensors[f"{stored}.alpha"] = torch.tensor(float(down.shape[0]), dtype=dtype)
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise TrainingFailed(
            "The weights hold numbers that are not finite, or too large for the file's precision; nothing was exported."
        )
    digest = content_hash(tensors)
    file = path.with_name(f"{check_name(path.name.removesuffix('.safetensors'))}-{digest[:10]}.safetensors")
    data = safetensors.torch.save(tensors, _header(weights, file.stem, family, digest, metadata))
    write_safetensors(file, data)
    return file


def lora_name(projection: str, family: str) -> str:
    """A projection's name in LoRA files: diffusers' for SD1 and SD2, Stability's own for SDXL, dots become underscores.

    "mid_block.attentions.0.transformer_blocks.3.attn1.to_out.0" is
    "lora_unet_middle_block_1_transformer_blocks_3_attn1_to_out_0" for SDXL. Raises `ModelUnfit` for a name that is none of the
    family's.
    """
    if not PROJECTION.match(projection) or projection.split(".", 1)[0] not in BLOCKS:
        raise ModelUnfit(f"{projection} is no attention layer of a Stable Diffusion UNet.")
    if family == "sdxl":
        projection = _SDXL_BLOCK.sub(_stability_block, projection)
        if projection.startswith(tuple(BLOCKS)):
            raise ModelUnfit(f"SDXL has no layer {projection}: the weights are for a model of another family.")
    return "lora_unet_" + projection.replace(".", "_")


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of a safetensors file's content without its header, 64 hex digits: the hash by which A1111 knows a LoRA."""
    data = safetensors.torch.save(dict(tensors))
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def _stability_block(match: re.Match[str]) -> str:
    """Where diffusers' `attentions` stand in the flat lists of SDXL's own UNet (sgm/modules/diffusionmodules/openaimodel.py,
    class UNetModel): `input_blocks` begins with a convolution, and each level ends with its downsampler; an upsampler is a
    part of its entry."""
    if match[1] is None:
        return "middle_block.1."
    level, count = int(match[2]), int(match[3])
    if count >= _SDXL_RESNETS + (match[1] == "up_blocks"):
        return match[0]
    first = 1 if match[1] == "down_blocks" else 0
    return f"{'input' if first else 'output'}_blocks.{first + (_SDXL_RESNETS + 1) * level + count}.1."


def _factor(name: str, strength: Strength) -> float:
    match, block = PROJECTION.match(name), BLOCKS.get(name.split(".", 1)[0])
    if not match or block is None:
        raise ModelUnfit(f"{name} is no attention layer of a Stable Diffusion UNet.")
    return strength.overall * strength.factor(match["part"], block)


def _balanced(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The same product from factors of like size, so that half precision does not swallow a small `up`. Powers of two round
    nothing."""
    largest = [float(factor.abs().max()) for factor in (down, up)]
    if not all(0 < size < math.inf for size in largest):
        return down, up
    shift = round(math.log2(largest[0] / largest[1]) / 2)
    return down * 2.0**-shift, up * 2.0**shift


def _header(weights: Weights, name: str, family: str, digest: str, metadata: Mapping[str, str] | None) -> dict[str, str]:
    version, is_v2, architecture = _FAMILIES[family]
    ranks = {down.shape[-2] for down, _ in weights.values()}
    rank = ranks.pop() if len(ranks) == 1 else None
    return {
        **(metadata or {}),
        "format": "pt",
        "ss_base_model_version": version,
        "ss_v2": is_v2,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank) if rank else "Dynamic",
        "ss_network_alpha": str(float(rank)) if rank else "Dynamic",
        "ss_output_name": name,
        "sshs_model_hash": digest,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.title": name,
    }
