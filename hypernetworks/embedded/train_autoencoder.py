"""Trains the autoencoder (factor 8, 4 latent channels) of the small Stable Diffusion model on varied pictures, so that it can show
styles the diffusion model does not know: random colours, textures, gradients, shapes in random styles, crops of photographs.

    python -m hypernetworks.embedded.train_autoencoder MODEL_FOLDER [--steps 3000]

About 10 minutes on 2 CPU cores. The photographs are those that scikit-image ships; without it there are none.
"""
from __future__ import annotations

import argparse
import importlib.util
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image, ImageFilter

from . import shapes

PHOTOGRAPHS = (
    "astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "hubble_deep_field.jpg", "color.png", "ihc.png",
    "brick.png", "grass.png", "gravel.png", "retina.jpg", "motorcycle_left.png")
PEAK_RATE = 2e-3


def load_photographs() -> list[Image.Image]:
    """The photographs that are installed with scikit-image; it fetches the others only when asked, so they are left out."""
    package = importlib.util.find_spec("skimage")
    if package is None:
        return []
    folder = Path(package.origin).parent / "data"
    return [Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS if (folder / name).is_file()]


def any_color(rng: random.Random) -> shapes.Color:
    """Mostly any colour at all, sometimes one of the named ones."""
    if rng.random() < 0.6:
        return rng.randrange(256), rng.randrange(256), rng.randrange(256)
    return rng.choice(list(shapes.COLORS.values()))


def texture(rng: random.Random, s: int) -> Image.Image:
    """`s` x `s` pixels of a pattern in two colours, or of smooth noise."""
    kind = rng.choice(["flat", "stripes", "dots", "checks", "gradient", "noise"])
    if kind != "noise":
        return shapes.pattern(kind, s, any_color(rng), any_color(rng), rng.uniform(0.06, 0.33), rng.random())
    n = rng.choice([4, 8, 16, 32])
    noise = np.random.RandomState(rng.randrange(1 << 30)).randint(0, 256, (n, n, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((s, s), Image.BICUBIC)


def varied_picture(rng: random.Random, photographs: list[Image.Image], pixels: int = shapes.PIXELS) -> Image.Image:
    """A crop of a photograph, a captioned shape in any style, or textured shapes on a texture."""
    u = rng.random()
    if u < 0.2 and photographs:
        photograph = rng.choice(photographs)
        side = rng.uniform(pixels, min(photograph.size))
        x, y = rng.uniform(0, photograph.width - side), rng.uniform(0, photograph.height - side)
        return photograph.resize((pixels, pixels), Image.LANCZOS, box=(x, y, x + side, y + side))
    if u < 0.45:
        style = rng.choice([shapes.PLAIN, shapes.random_style(rng.randrange(1 << 30))])
        return shapes.draw(shapes.random_content(rng), style, pixels)
    return textured_picture(rng, pixels)


def textured_picture(rng: random.Random, pixels: int) -> Image.Image:
    """One to three shapes, some of them hollow, each with a texture of its own; one picture in ten is blurred."""
    s = pixels * 2
    picture = texture(rng, s)
    for _ in range(rng.randrange(1, 4)):
        shape, size = rng.choice(shapes.SHAPES), rng.choice(list(shapes.SIZES))
        content = shapes.Content(shape, "red", "blue", size, rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3))
        mask = shapes.shape_mask(content, s)
        if rng.random() < 0.3:
            mask.paste(0, (0, 0), shapes.shape_mask(content, s, rng.uniform(0.5, 0.85)))
        picture.paste(texture(rng, s), (0, 0), mask)
    if rng.random() < 0.1:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(1, 6)))
    return picture.resize((pixels, pixels), Image.LANCZOS)


def new_autoencoder() -> AutoencoderKL:
    """About a million parameters."""
    return AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[16, 32, 64, 64], layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=shapes.PIXELS)


def batch_of(images: torch.Tensor, size: int, whole: bool) -> torch.Tensor:
    """`size` random pictures [size, 3, h, w] in -1..1, mirrored at random: whole ones, or crops of 64 pixels, which are cheap."""
    x = images[torch.randint(0, len(images), (size,))].float() / 127.5 - 1
    if not whole:
        top, left = torch.randint(0, shapes.PIXELS - 63, (2,)).tolist()
        x = x[:, :, top : top + 64, left : left + 64]
    for axis in (-1, -2):
        x = x.flip(axis) if torch.rand(()) < 0.5 else x
    return x


def train(folder: Path, steps: int = 3000, pictures: int = 5000, batch: int = 16) -> None:
    """Trains a new autoencoder and writes it to `folder`/vae. The last steps see whole pictures."""
    torch.manual_seed(0)
    rng, started, photographs = random.Random(1), time.monotonic(), load_photographs()
    drawn = np.stack([np.asarray(varied_picture(rng, photographs)) for _ in range(pictures)])
    images = torch.from_numpy(drawn).permute(0, 3, 1, 2)  # [pictures, 3, h, w] bytes
    vae = new_autoencoder()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(1, (step + 1) / 100) * (0.5 * (1 + math.cos(math.pi * step / steps)) + 0.02)
        whole = step >= steps * 0.95
        x = batch_of(images, batch // 2 if whole else batch, whole)
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
        loss = F.l1_loss(y, x) + F.mse_loss(y, x) + 2e-6 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            error = F.mse_loss(y, x).item()
            print(f"step {step} loss {loss.item():.4f} mse {error:.4f} after {time.monotonic() - started:.0f} s", flush=True)
    vae.half().save_pretrained(folder / "vae")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the autoencoder of the small Stable Diffusion model.")
    parser.add_argument("folder", type=Path, metavar="MODEL_FOLDER", help="vae/ is written into it")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--pictures", type=int, default=5000, help="how many different pictures are drawn")
    options = parser.parse_args(arguments)
    train(options.folder, options.steps, options.pictures)


if __name__ == "__main__":
    main()
