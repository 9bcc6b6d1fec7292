"""The small Stable Diffusion model that ships with the package, a generator for it, the demo's pictures, and the scripts that made
them.

`model/` is a Stable Diffusion 1-style model in diffusers' layout: 128 x 128 pixels, UNet 3.4M parameters, self-attention widths 48 and
96, context width 128. `pictures/<style>/` are captioned pictures in a style that the captions do not name.
"""
from pathlib import Path

MODEL = Path(__file__).parent / "model"
PICTURES = Path(__file__).parent / "pictures"
GENERATOR = Path(__file__).parent / "generator.safetensors"
