"""Trains the generator that ships with the embedded model: from a picture of any style to the weights for that style.

    python -m hypernetworks.embedded.train_generator [--file FILE] [--styles FOLDER] [--steps N] [--seed 1]

The styles are drawn (make_styles.py) unless their folder is there already. What comes out is an equivalent generator, not the same bytes.
"""
from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from ..config import TrainingConfig, read
from ..generator_files import load_generator, save_generator
from ..host import Folders, Host
from ..progress_bar import show
from ..trainer import HypernetworkTrainer
from . import GENERATOR
from .make_styles import make_styles, training_styles

PICTURES = 12  # of each style
SHIPPED = 1  # the seed of the generator that ships
STRUCTURE = dict(conditions=("image",), rank=4, embedding_dim=256, hidden_dim=512, basis_size=32)
OPTIONS = dict(
    encoder_steps=600, batch_size=8, max_steps=2000, learning_rate="2e-3", caption_dropout=0.05, condition_dropout=0.05,
    validation_share=0.02, validation_every=250, preview_every=0, checkpoint_every=250,
)


def train_generator(styles: Path, path: Path, host: Host, **options: Any) -> None:
    """Trains on a folder of folders and writes the file, in half precision. `options` are more options of the training, such as its seed.

    A run that was interrupted goes on from its last checkpoint.
    """
    config = read(TrainingConfig, {"name": path.stem, "kind": "generator", **STRUCTURE, **OPTIONS, **options})
    trainer = HypernetworkTrainer(config=config)
    show(trainer, trainer.run(styles, host, resume=True, overwrite=True))
    trained = load_generator(host.folders.networks / f"{path.stem}.safetensors")
    save_generator(trained, path, overwrite=True, dtype=torch.float16)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    from ..hosts.diffusers import DiffusersHost

    parser = argparse.ArgumentParser(description="Train the embedded model's generator.")
    parser.add_argument("--file", type=Path, default=GENERATOR, help="where it goes (default: the one that ships)")
    parser.add_argument("--styles", type=Path, help="a folder of styles (default: drawn anew)")
    parser.add_argument("--steps", type=int, default=OPTIONS["max_steps"])
    parser.add_argument("--seed", type=int, default=SHIPPED, help="default: %(default)s, the best of three (docs/performance.md)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        styles = options.styles or make_styles(home / "styles", training_styles(), PICTURES)
        train_generator(styles, options.file, DiffusersHost(None, Folders.below(home)), seed=options.seed, max_steps=options.steps)


if __name__ == "__main__":
    main()
