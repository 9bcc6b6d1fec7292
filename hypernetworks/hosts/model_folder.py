"""Stable Diffusion as a folder in diffusers' layout: recognised or refused before anything is loaded."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import ModelUnfit
from .single_file import WANTED

PARTS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}


def recognise(folder: Path) -> str:
    """The name of diffusers' pipeline class for it. Raises `ModelUnfit` for all but Stable Diffusion 1.x, 2.x and SDXL."""
    if not folder.exists():
        raise ModelUnfit(f"There is no model at {folder}.")
    if not (folder / "model_index.json").is_file():
        raise ModelUnfit(f"{folder} is no diffusers model: it has no model_index.json. This needs {WANTED}.")
    index = _read(folder / "model_index.json")
    kinds = {name: entry[1] for name, entry in index.items() if isinstance(entry, list) and len(entry) == 2}
    if kinds.get("text_encoder_2") and not kinds.get("text_encoder"):
        raise ModelUnfit(f"{folder.name} is the SDXL refiner, which paints over a finished picture; this needs {WANTED}.")
    if any(kinds.get(part) != kind for part, kind in PARTS.items()):
        raise ModelUnfit(f"{folder.name} is a {index.get('_class_name', 'model of an unknown kind')}; this needs {WANTED}.")
    if not any((folder / "unet").glob("*.safetensors")):
        raise ModelUnfit(f"{folder.name} has no weights in safetensors files; other formats can run code while they are read.")
    channels = _read(folder / "unet" / "config.json").get("in_channels", 4)
    if channels != 4:
        wanted = f"{WANTED} that makes pictures from text alone"
        raise ModelUnfit(f"{folder.name} has a UNet that takes {channels} channels; this needs {wanted}.")
    return "StableDiffusionXLPipeline" if kinds.get("text_encoder_2") else "StableDiffusionPipeline"


def variant(folder: Path) -> str | None:
    """What diffusers calls the files' variant: fp16 where the folder holds half-precision files only."""
    return None if any(".fp16." not in path.name for path in (folder / "unet").glob("*.safetensors")) else "fp16"


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelUnfit(f"{path} cannot be read ({error}).") from error
    if not isinstance(values, dict):
        raise ModelUnfit(f"{path} cannot be read (it holds no names and values).")
    return values
