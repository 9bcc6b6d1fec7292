"""What a generator is told, made with the host's own encoders: from a text, a picture or a task's name to a condition of one row.

The same at training and at generation, and on every host.
"""

from __future__ import annotations

import numpy
import torch
from PIL import Image
from torch import Tensor

from .buckets import Bucket, crop_of
from .conditions import Condition
from .errors import ConfigError, HypernetworkError
from .generator import Hypernetwork
from .host import Host


def condition_of_text(host: Host, text: str) -> Condition:
    """The mean over the tokens of the text's context, [1, width] float32 on the CPU. An empty text is a text too."""
    return Condition(text=host.encode_prompts([text]).context.mean(1).float().cpu())


def condition_of_picture(host: Host, image: Image.Image) -> Condition:
    """The mean of the scaled latents of the picture's middle, [1, c, h, w] float32 on the CPU: cut square to the model's
    resolution.

    Raises `HypernetworkError` where the autoencoder overflows.
    """
    latents = host.encode_pictures(_pixels(image, host.model.resolution)[None])[0].float().cpu()
    if not latents.isfinite().all():
        raise HypernetworkError(
            "The autoencoder (VAE) gives values that are not numbers for the reference picture; "
            "run it in full precision, or choose another VAE."
        )
    return Condition(image=latents)


def condition_of_task(hypernetwork: Hypernetwork, name: str) -> Condition:
    """The number of the task of that name, [1]. Raises `ConfigError` that says which tasks there are."""
    tasks = hypernetwork.structure.tasks
    if not tasks:
        raise ConfigError("This generator was made for no tasks.")
    if name not in tasks:
        raise ConfigError(f"This generator knows no task {name!r}; it knows {', '.join(tasks)}.")
    return Condition(task=torch.tensor([tasks.index(name)]))


def _pixels(image: Image.Image, side: int) -> Tensor:
    """[3, side, side] float32 in -1..1: the middle of the picture."""
    place = crop_of(image.width, image.height, Bucket(side, side))
    image = image.convert("RGB").resize((place.width, place.height), Image.Resampling.LANCZOS)
    image = image.crop((place.left, place.top, place.left + side, place.top + side))
    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1).float() / 127.5 - 1
