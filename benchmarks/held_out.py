"""The held-out styles of the generator's benchmark: what is trained for them and on them, and the loss that says how good it is."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from classifier import SMALL, Effort, to_pixels
from PIL import Image
from report import kept
from torch import Tensor

from hypernetworks import Hypernetwork
from hypernetworks.batches import spread_timesteps
from hypernetworks.config import TrainingConfig, read
from hypernetworks.embedded import shapes
from hypernetworks.embedded.make_styles import FAMILIES, contents_of, held_out_styles, make_style, make_styles, training_styles
from hypernetworks.embedded.train_generator import OPTIONS, STRUCTURE, train_generator
from hypernetworks.generator import apply_weights
from hypernetworks.generator_files import load_generator
from hypernetworks.host import Folders, Host, PictureSize
from hypernetworks.hosts.diffusers import DiffusersHost
from hypernetworks.lora import Weights
from hypernetworks.losses import add_noise, denoising_target, min_snr_weights
from hypernetworks.low_rank import LowRankWeights
from hypernetworks.trainer import HypernetworkTrainer

SEEN, LOOKED_AT = 16, 8  # pictures of a held-out style: the oracle learns from the first, the loss is measured on those behind them
TIMESTEPS = 8  # each picture is measured at half of them
RATE = "3e-3"  # of all LoRAs


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    training: int = 1000  # styles below this number
    pictures: int = 12  # of each
    held_out: int = 16
    family: int = 4  # held-out styles of each family that was never trained
    steps: int = OPTIONS["max_steps"]
    shared_steps: int = 800  # it learns nothing more after some 600
    oracle_steps: int = 240
    one_picture_steps: int = 120
    scratch_steps: tuple[int, ...] = (40, 70, 100)
    encoder_steps: int = OPTIONS["encoder_steps"]
    prompts: int = 6  # drawn in each held-out style
    judge: Effort = Effort()


QUICK = Size(40, 4, 3, 1, 8, 8, 8, 8, (2, 4), 8, 1, SMALL)


class Bench:
    """The model, the held-out styles, and what is measured on them."""

    def __init__(self, out: Path, size: Size) -> None:
        self.out, self.size = out, size
        self.host = DiffusersHost(folders=Folders.below(out))
        self.styles = held_out_styles(size.held_out)
        self.families = {name: held_out_styles(size.family, name) for name in FAMILIES}
        self._yardsticks: dict[int, Yardstick] = {}

    def kept(self, name: str, settings: Any, make: Callable[[], Any]) -> Any:
        """What was measured before with equal settings, else what `make` measures."""
        return kept(self.out, name, (settings, self.host.model.hash, RATE, SEEN, LOOKED_AT, TIMESTEPS), make)

    def yardstick(self, style: int) -> Yardstick:
        """Of one style."""
        if style not in self._yardsticks:
            self._yardsticks[style] = Yardstick(self.host, shapes.random_style(style), contents_of(style, SEEN + LOOKED_AT)[SEEN:], seed=style)
        return self._yardsticks[style]

    def losses(self, weights: Callable[[int], Weights | None], styles: Sequence[int]) -> dict[str, float]:
        """Of each style, with the weights that `weights` has for it."""
        found = {}
        for style in styles:
            with acting(self.host, weights(style)):
                found[str(style)] = self.yardstick(style).loss()
        return found

    # --- what is trained ---

    def generator(self, seed: int) -> Hypernetwork:
        """Trained with that seed."""
        path = self.out / f"generator seed {seed} of {self.size.steps} steps.safetensors"
        if not path.is_file():
            styles = make_styles(self.out / "styles" / f"{self.size.pictures} each", training_styles(self.size.training), self.size.pictures)
            train_generator(styles, path, self.host, seed=seed, max_steps=self.size.steps, encoder_steps=self.size.encoder_steps)
        return load_generator(path)

    def shared(self, seed: int) -> Weights:
        """One LoRA for all training styles."""
        path = self.out / f"shared seed {seed} of {self.size.shared_steps} steps.pt"
        if not path.is_file():
            weights = LowRankWeights.new(self.host.unet, STRUCTURE["rank"], seed=seed)
            styles = make_styles(self.out / "styles" / f"{self.size.pictures} each", training_styles(self.size.training), self.size.pictures)
            for _ in self._training(weights, flat(styles, self.out / "flat"), self.size.shared_steps, OPTIONS["batch_size"], seed):
                pass
            torch.save(weights.weights(), path)
        return torch.load(path, weights_only=True)

    def reference(self, style: int) -> Image.Image:
        """The first picture of a held-out style: the one that everything that sees one picture sees."""
        return Image.open(self.pictures(style) / "01.png")

    def pictures(self, style: int, count: int = SEEN) -> Path:
        """A folder with the first pictures of a style."""
        return make_style(self.out / "held out" / f"{count} each" / f"{style:05}", style, count)

    def curve(self, weights: LowRankWeights, style: int, pictures: int, steps: int, every: int, seed: int) -> dict[int, float]:
        """Step -> loss of a LoRA that is trained on the first pictures of a style."""
        found = {}
        for step in self._training(weights, self.pictures(style, pictures), steps, 4, seed):
            if step % every == 0:
                with torch.no_grad():
                    found[step] = self.yardstick(style).loss()
        return found

    def _training(self, weights: LowRankWeights, pictures: Path, steps: int, batch_size: int, seed: int) -> Iterator[int]:
        """The steps' numbers, each when it is done and the weights are at work."""
        config = read(TrainingConfig, {
            "name": "measured", "max_steps": steps, "batch_size": batch_size, "learning_rate": RATE, "warmup_steps": min(10, steps - 1), "seed": seed,
            "caption_dropout": 0.05, "validation_share": 0.0, "validation_every": 0, "preview_every": 0, "checkpoint_every": 0,
        })  # fmt: skip
        for event in HypernetworkTrainer(weights, config).run(pictures, self.host, overwrite=True):
            if event.kind == "step":
                yield event.step


class Yardstick:
    """The denoising loss on pictures of one style that nothing is trained on, at fixed noise and timesteps."""

    def __init__(self, host: Host, style: shapes.Style, contents: Sequence[shapes.Content], seed: int) -> None:
        """`seed` of the noise."""
        pixels = to_pixels([shapes.draw(content, style) for content in contents])
        self.host, self.latents = host, host.encode_pictures(pixels.float() / 127.5 - 1)[0]
        self.conditioning = host.encode_prompts([content.caption() for content in contents])
        self.noise = torch.randn(self.latents.shape, generator=torch.Generator().manual_seed(seed))
        moments = spread_timesteps(TIMESTEPS, len(host.alphas_cumprod))
        self.timesteps = [torch.tensor([moments[(place + shift) % TIMESTEPS] for place in range(len(contents))]) for shift in range(0, TIMESTEPS, 2)]

    def loss(self, weighted: bool = True) -> float:
        """With what is at work on the UNet now; timesteps weigh as in training, or all alike."""
        with torch.no_grad():
            return mean(float(self._loss(timesteps, weighted)) for timesteps in self.timesteps)

    def _loss(self, timesteps: Tensor, weighted: bool) -> Tensor:
        alphas, kind = self.host.alphas_cumprod[timesteps], self.host.model.prediction_type
        side = self.host.model.resolution
        sizes = [PictureSize((side, side), (0, 0), (side, side))] * len(timesteps)
        predicted = self.host.predict(add_noise(self.latents, self.noise, alphas), timesteps, self.conditioning, sizes)
        errors = (predicted - denoising_target(self.latents, self.noise, alphas, kind)).square().flatten(1).mean(1)
        return (errors * min_snr_weights(alphas, OPTIONS.get("min_snr_gamma", TrainingConfig.min_snr_gamma), kind)).mean() if weighted else errors.mean()


@contextmanager
def acting(host: Host, weights: Weights | None) -> Iterator[None]:
    """The weights at work on the host's UNet; None is the bare model."""
    with nullcontext() if weights is None else apply_weights(host.unet, weights):
        yield


def flat(styles: Path, folder: Path) -> Path:
    """All pictures of a folder of folders in one, as links."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in styles.glob("*/*"):
        link = folder / f"{path.parent.name} {path.name}"
        if not link.exists():
            link.hardlink_to(path)
    return folder
