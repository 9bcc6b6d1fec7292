"""The judge of generated pictures: tells style, shape and colour of a picture from the shapes world.

It learns from real renders and from the same renders after the model's autoencoder, never from generated pictures. Renders in manners
that are none of the styles it is to tell apart (other fills, other palettes, stripes at another slant) can form one more class, so that
what merely looks odd does not count as a style.
"""
from __future__ import annotations

import hashlib
import inspect
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from hypernetworks.embedded import shapes

OTHER = "other"
COLORS = tuple(shapes.COLORS)
UNKNOWN = -100  # label of what a picture does not show; cross entropy skips it

Styles = Mapping[str, shapes.Style]


@dataclass(frozen=True)
class Effort:
    """How much the judge learns from: renders, how many of them also pass the autoencoder, and passes over all of it."""

    renders: int = 6000
    round_trips: int = 1500
    epochs: int = 8
    held_out: int = 900


SMALL = Effort(renders=2400, round_trips=400, epochs=5, held_out=240)


@dataclass
class Pictures:
    """`pixels` [n, 3, 128, 128] uint8, `labels` [n, 3] of style, shape, colour."""

    pixels: torch.Tensor
    labels: torch.Tensor


class Judge(nn.Module):
    """A small convolutional classifier of `styles` classes; forward(pixels [n, 3, 128, 128] in 0..1) -> logits of style, shape, colour."""

    def __init__(self, styles: int) -> None:
        super().__init__()

        def block(width: int, out: int, stride: int) -> list[nn.Module]:
            return [nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]

        self.body = nn.Sequential(
            nn.AvgPool2d(2),
            *block(3, 24, 2), *block(24, 48, 2), *block(48, 48, 1), *block(48, 96, 2), *block(96, 96, 1),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.2),
        )
        self.heads = nn.ModuleList(nn.Linear(96 * 16, classes) for classes in (styles, len(shapes.SHAPES), len(COLORS)))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self.body(pixels - 0.5)
        return tuple(head(features) for head in self.heads)

    @torch.no_grad()
    def judge(self, pixels: torch.Tensor) -> torch.Tensor:
        """[n, 3] of style, shape, colour as numbers, for pixels [n, 3, 128, 128] uint8."""
        self.eval()
        return torch.cat([torch.stack([logits.argmax(1) for logits in self(part.float() / 255)], 1) for part in pixels.split(64)])


def labels_of(number: int, content: shapes.Content, style: shapes.Style | None) -> list[int]:
    """Numbers of style, shape, colour; None for an odd style. Colour is unknown where the style does not keep it."""
    keeps_color = style is not None and style.palette == "plain"
    return [number, shape_label(content.shape, style), COLORS.index(content.color) if keeps_color else UNKNOWN]


def shape_label(shape: str, style: shapes.Style | None) -> int:
    """An outlined ring is drawn exactly like an outlined circle, so both count as a circle."""
    return shapes.SHAPES.index("circle" if shape == "ring" and style is not None and style.fill == "outline" else shape)


def other_style(rng: random.Random) -> shapes.Style:
    """A manner that is none of the five: named otherwise, or striped at another slant (at least 22 degrees off)."""
    named = {style.words() for style in shapes.STYLES.values()}
    while True:
        style = shapes.random_style(rng.randrange(1 << 30))
        slant = abs((style.angle - shapes.STYLES["striped"].angle + 0.25) % 0.5 - 0.25)
        if style.words() not in named or (style.words() == "striped" and slant >= 1 / 16):
            return style


def to_pixels(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """[n, 3, h, w] uint8."""
    return torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])).permute(0, 3, 1, 2).contiguous()


def renders(styles: Sequence[shapes.Style | None], count: int, seed: int) -> Pictures:
    """Real renders, the classes taking turns; None is the class of odd styles."""
    rng = random.Random(seed)
    pictures, labels = [], []
    for place in range(count):
        number = place % len(styles)
        style, content = styles[number], shapes.random_content(rng)
        pictures.append(shapes.draw(content, style or other_style(rng)))
        labels.append(labels_of(number, content, style))
    return Pictures(to_pixels(pictures), torch.tensor(labels))


@torch.no_grad()
def round_trip(autoencoder: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """The pictures after the model's (diffusers) autoencoder: what a perfect generator could show at best."""
    done = []
    for part in pixels.split(16):
        decoded = autoencoder.decode(autoencoder.encode(part.float() / 127.5 - 1).latent_dist.mean).sample
        done.append(((decoded + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
    return torch.cat(done)


def augment(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """[n, 3, h, w] in 0..1, moved by up to 6 pixels, with slightly other colours and a little noise. Never mirrored: stripes have a slant."""
    side = pixels.shape[-1]
    x, y = torch.randint(0, 13, (2,), generator=generator).tolist()
    pixels = F.pad(pixels, (6, 6, 6, 6), mode="replicate")[..., y : y + side, x : x + side]
    gain, offset = torch.rand(2, len(pixels), 3, 1, 1, generator=generator)
    return pixels * (0.92 + 0.16 * gain) + 0.08 * (offset - 0.5) + 0.03 * torch.randn(pixels.shape, generator=generator)


def train(pictures: Pictures, styles: int, epochs: int, seed: int = 0) -> Judge:
    """A judge of so many classes of styles fitted to the pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge(styles).train()
        generator = torch.Generator().manual_seed(seed)
        count = len(pictures.labels)
        optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * (count // 64))
        for _ in range(epochs):
            order = torch.randperm(count, generator=generator)[: count // 64 * 64]
            for chosen in order.split(64):
                logits = judge(augment(pictures.pixels[chosen].float() / 255, generator))
                loss = sum(F.cross_entropy(part, labels, label_smoothing=0.02) for part, labels in zip(logits, pictures.labels[chosen].T, strict=True))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return judge.eval()


def accuracy(judge: Judge, pictures: Pictures, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Per class of style (and "all"): shares of right "style", "shape", "colour" (absent where the style does not keep it)."""
    judged = judge.judge(pictures.pixels)
    right, known = (judged == pictures.labels).float(), pictures.labels != UNKNOWN
    table = {}
    for name in (*names, "all"):
        rows = torch.ones(len(right), dtype=torch.bool) if name == "all" else pictures.labels[:, 0] == names.index(name)
        counted = {what: rows & known[:, i] for i, what in enumerate(("style", "shape", "colour"))}
        table[name] = {what: right[rows, i].mean().item() for i, (what, rows) in enumerate(counted.items()) if rows.any()}
    return table


def prepare(
    autoencoder: nn.Module, folder: Path, effort: Effort = Effort(), styles: Styles = shapes.STYLES, other: bool = True
) -> tuple[Judge, dict[str, dict]]:
    """The judge of these styles, numbered in their order, and with `other` of odd ones behind them; and its accuracy on held-out `renders`
    and on their `round trips` (the ceiling). Kept in `folder` and trained anew when this file, the shapes, the autoencoder or anything asked changes."""
    state = [f"{key} {value.double().sum().item():.6g}" for key, value in autoencoder.state_dict().items()]
    sources = [Path(__file__).read_text(encoding="utf-8"), inspect.getsource(shapes), repr((effort, styles, other)), *state]
    path = folder / f"judge-{hashlib.sha256(''.join(sources).encode()).hexdigest()[:10]}.pt"
    names, manners = [*styles, *[OTHER] * other], [*styles.values(), *[None] * other]
    if path.exists():
        kept, judge = torch.load(path, weights_only=True), Judge(len(names))
        judge.load_state_dict(kept["judge"])
        return judge.eval(), kept["accuracy"]
    shown, hidden = renders(manners, effort.renders, seed=1), renders(manners, effort.held_out, seed=2)
    chosen = slice(0, effort.round_trips)
    trips = round_trip(autoencoder, shown.pixels[chosen])
    # Round trips are what generated pictures look like, so they are shown twice as often.
    shown = Pictures(torch.cat([shown.pixels, trips, trips]), torch.cat([shown.labels, *[shown.labels[chosen]] * 2]))
    judge = train(shown, len(names), effort.epochs)
    after = Pictures(round_trip(autoencoder, hidden.pixels), hidden.labels)
    found = {"renders": accuracy(judge, hidden, names), "round trips": accuracy(judge, after, names)}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"judge": judge.state_dict(), "accuracy": found}, path)
    return judge, found
