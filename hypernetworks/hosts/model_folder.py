"""Stable Diffusion as a folder in diffusers' layout: recognised or refused before anything is loaded."""
from __future__ import annotations

import json
from pathlib import Path

from ..errors import ModelUnfit
from .single_file import WANTED


def recognise(folder: Path) -> str:
    """The name of diffusers' pipeline class for a folder. Raises `ModelUnfit` for anything but Stable Diffusion 1.x, 2.x or SDXL."""
    if not folder.exists():
        raise ModelUnfit(f"There is no model at {folder}.")
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        kinds = {name: entry[1] for name, entry in index.items() if isinstance(entry, list) and len(entry) == 2}
    except FileNotFoundError:
        raise ModelUnfit(f"{folder} is no diffusers model: it has no model_index.json. This needs {WANTED}.") from None
    except (OSError, ValueError, AttributeError) as error:
        raise ModelUnfit(f"{folder / 'model_index.json'} cannot be read ({error}).") from error
    if kinds.get("unet") != "UNet2DConditionModel" or kinds.get("vae") != "AutoencoderKL" or kinds.get("text_encoder") != "CLIPTextModel":
        raise ModelUnfit(f"{folder.name} is a {index.get('_class_name', 'model of an unknown kind')}; this needs {WANTED}.")
    if not any((folder / "unet").glob("*.safetensors")):
        raise ModelUnfit(f"{folder.name} has no weights in safetensors files; other formats can run code while they are read.")
    channels = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8")).get("in_channels", 4)
    if channels != 4:
        raise ModelUnfit(f"{folder.name} has a UNet that takes {channels} channels; this needs {WANTED} that makes pictures from text alone.")
    return "StableDiffusionXLPipeline" if kinds.get("text_encoder_2") else "StableDiffusionPipeline"


def variant(folder: Path) -> str | None:
    """"fp16" where the folder holds half-precision files only."""
    return None if any(".fp16." not in path.name for path in (folder / "unet").glob("*.safetensors")) else "fp16"
