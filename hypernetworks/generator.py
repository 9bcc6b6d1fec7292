"""The generating hypernetwork: a condition becomes low-rank deltas for the attention projections of a frozen UNet, in one pass.

Encoder (a condition to a latent), weight generator (a latent to a token per layer) and decoder (a token to the factors A and B
of the layer's delta) after Ha et al. 2016 (HyperNetworks) and Ruiz et al. 2023 (HyperDreamBooth). Once bound it knows names
and widths of layers, never a UNet. The strength is no part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from .attention import Attachment, LowRankEdit, Strength, attached, find_projections
from .conditions import IMAGE_FEATURES, KINDS, Blend, Condition, HypernetworkEncoder, initialize_modules
from .decoders import BasisDecoder, HypernetworkDecoder, Layer, LidbDecoder, RankTokenDecoder
from .errors import ConfigError, ModelUnfit, NotBound
from .lora import Weights, concatenate, scale

__all__ = [
    "Blend", "Condition", "Hypernetwork", "HypernetworkDecoder", "HypernetworkEncoder", "HypernetworkStructure",
    "WeightGenerator", "apply_weights",
]  # fmt: skip

DECODERS = ("basis", "rank_token", "lidb")
_CHOICES = {
    "target_layers": ("attn1", "attn2"),
    "projections": ("q", "k", "v", "out"),
    "blocks": ("input", "middle", "output"),
    "conditions": KINDS,
}
_LARGEST = 2**16


@dataclass(frozen=True)
class HypernetworkStructure:
    """All that rebuilds an empty generator of the same shape, but for the layers. Raises `ConfigError` for what cannot be built.

    `target_layers`, `projections`, `blocks`: which projections get a delta of rank `rank`.
    `embedding_dim`, `hidden_dim`: widths of latent and tokens, and of the layers between; `depth`: the trunk's residual blocks.
    `decoder`: "basis" (`basis_size` matrices of each factor per layer), "rank_token" (heads shared by layers of one shape) or
    "lidb" (small factors between frozen matrices of the inner widths `auxiliary`).
    `conditions`: "text", "image", "task"; the last also where `tasks`, their names, are given. `text_width`: of the pooled
    text features, None for the width of the model's context. `image_features`: "latents" of `image_width` channels or "tokens"
    of that width.
    """

    target_layers: tuple[str, ...] = ("attn1", "attn2")
    embedding_dim: int = 768
    hidden_dim: int = 1024
    rank: int = 4
    decoder: str = "basis"
    basis_size: int = 32
    projections: tuple[str, ...] = ("q", "k", "v", "out")
    blocks: tuple[str, ...] = ("input", "middle", "output")
    depth: int = 3
    auxiliary: tuple[int, int] = (100, 50)
    conditions: tuple[str, ...] = ("text", "image")
    tasks: tuple[str, ...] = ()
    text_width: int | None = None
    image_features: str = "latents"
    image_width: int = 4

    def __post_init__(self) -> None:
        for name in (*_CHOICES, "tasks"):
            object.__setattr__(self, name, _names(name, getattr(self, name)))
        for name, choices in _CHOICES.items():
            chosen = getattr(self, name)
            if not chosen or not set(chosen) <= set(choices):
                raise ConfigError(f"{name} is one or several of {', '.join(choices)}, not {', '.join(chosen) or 'nothing'}.")
        if self.tasks and "task" not in self.conditions:
            object.__setattr__(self, "conditions", (*self.conditions, "task"))
        if "task" in self.conditions and not self.tasks:
            raise ConfigError("A generator for task conditions needs the names of its tasks.")
        for name, choices in (("decoder", DECODERS), ("image_features", IMAGE_FEATURES)):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is one of {', '.join(choices)}, not {getattr(self, name)!r}.")
        for name in ("embedding_dim", "hidden_dim", "rank", "basis_size", "depth", "image_width"):
            _check_number(name, getattr(self, name))
        if self.text_width is not None:
            _check_number("text_width", self.text_width)
        if not isinstance(self.auxiliary, (tuple, list)) or len(self.auxiliary) != 2:
            raise ConfigError("auxiliary is two whole numbers: the inner widths of A and of B.")
        for number in self.auxiliary:
            _check_number("auxiliary", number)
        object.__setattr__(self, "auxiliary", tuple(self.auxiliary))


class WeightGenerator(nn.Module):
    """A latent [b, width] and a learned embedding per layer to a token per layer [b, L, width], through residual blocks.

    Weights are on the meta device until `initialize`.
    """

    def __init__(self, layers: int, width: int, hidden: int, depth: int = 3) -> None:
        super().__init__()
        with torch.device("meta"):
            self.layer_embedding = nn.Embedding(layers, width)
            self.embedding_norm = nn.LayerNorm(width)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
                for _ in range(depth)
            )
            self.norm = nn.LayerNorm(width)

    def forward(self, latent: Tensor) -> Tensor:
        x = latent[:, None] + self.embedding_norm(self.layer_embedding.weight)
        for block in self.blocks:
            x = x + block(x)
        return self.norm(x)

    def initialize(self, generator: torch.Generator) -> None:
        """Draws the weights; the modules must be on the CPU."""
        initialize_modules(self, generator)


class Hypernetwork(nn.Module):
    """Generates weights for the layers of the model that it is bound to. Calling it is `generate_weights`.

    `metadata` holds what else its file says, as text (see docs/formats.md); `step` counts the training steps.
    """

    name: str = ""
    description: str = ""
    step: int = 0

    def __init__(self, target_layers: Sequence[str] = ("attn1", "attn2"), *, seed: int = 0, **structure: Any) -> None:
        """`structure`: the other fields of `HypernetworkStructure`. Equal seeds give equal weights; no global random state is
        used.

        There are no weights before `bind`. Raises `ConfigError` for unknown or impossible values.
        """
        super().__init__()
        known = [field.name for field in fields(HypernetworkStructure)]
        if unknown := sorted(set(structure) - set(known)):
            raise ConfigError(f"A hypernetwork has no option {unknown[0]!r}; there are {', '.join(known)} and seed.")
        self.structure = HypernetworkStructure(target_layers, **structure)
        self.seed = seed
        self.layers: tuple[Layer, ...] = ()
        self.metadata: dict[str, str] = {}

    @property
    def is_bound(self) -> bool:
        """Whether layers and weights are there."""
        return bool(self.layers)

    def bind(self, unet: nn.Module, initialize: bool = True) -> Hypernetwork:
        """Takes names and widths from a UNet and draws the weights; a bound one checks that it fits this UNet too.

        `initialize` False leaves the weights on the meta device. Raises `ModelUnfit` for another model and where no layer is
        chosen,
        `ConfigError` for a rank that is larger than a layer.
        """
        projections = find_projections(unet)
        if self.is_bound:
            check_fit({layer.name: layer for layer in self.layers}, unet, "generator")
            return self
        about = self.structure
        layers = [
            Layer(p.name, p.in_width, p.out_width)
            for p in projections
            if p.attention in about.target_layers and p.part in about.projections and p.block in about.blocks
        ]
        if not layers:
            raise ModelUnfit("The loaded model has none of the attention layers that this hypernetwork is to change.")
        narrowest = min(layers, key=lambda layer: min(layer.in_width, layer.out_width))
        if about.rank > (width := min(narrowest.in_width, narrowest.out_width)):
            raise ConfigError(
                f"The rank {about.rank} is larger than the layer {narrowest.name}, whose width is {width}: choose a smaller one."
            )
        context = next((p.in_width for p in projections if p.attention == "attn2" and p.part == "k"), None)
        self.build(layers, about.text_width or context)
        if initialize:
            self.initialize()
        return self

    def build(self, layers: Sequence[Layer], text_width: int | None) -> None:
        """The parts for these layers, their weights on the meta device."""
        about = self.structure
        if text_width is None and "text" in about.conditions:
            raise ConfigError("The loaded model has no text context; say how wide the text features are (text_width).")
        self.structure = about = replace(about, text_width=text_width)
        self.layers = tuple(layers)
        width = about.embedding_dim
        self.encoder = HypernetworkEncoder(
            width, about.hidden_dim, about.conditions, text_width or 0, about.image_features, about.image_width, len(about.tasks)
        )
        self.generator = WeightGenerator(len(self.layers), width, about.hidden_dim, about.depth)
        self.decoder = _decoder(about, self.layers)
        self.float()  # whatever default dtype a host has set

    def initialize(self) -> None:
        """Draws float32 weights on the CPU. Every delta is 0 then, for B is."""
        generator = torch.Generator().manual_seed(self.seed)
        # Forge loads under inference_mode, and weights made in it could never be trained
        with torch.inference_mode(False), torch.no_grad():
            self.to_empty(device="cpu")
            for part in (self.encoder, self.generator, self.decoder):
                part.initialize(generator)

    def generate_weights(self, condition: Condition | Blend) -> dict[str, tuple[Tensor, Tensor]]:
        """{projection name: (A [b, r, in], B [b, out, r])}; two conditions blended have rank 2r. On the network's device, in
        its dtype.

        Raises `NotBound` before `bind`, and `ConfigError` for a condition that the network was not made for.
        """
        if not self.is_bound:
            raise NotBound(
                "This hypernetwork has met no model yet, so it has no layers to make weights for: call bind(unet), or train it."
            )
        if isinstance(condition, Blend):
            return self._blend(condition)
        with torch.autocast(self.encoder.null.device.type, enabled=False):  # small sums of many terms: bf16 is too coarse
            return self.decoder(self.generator(self.encoder(condition)))

    def forward(self, condition: Condition | Blend) -> dict[str, tuple[Tensor, Tensor]]:
        return self.generate_weights(condition)

    def _blend(self, blend: Blend) -> dict[str, tuple[Tensor, Tensor]]:
        if blend.share in (0, 1):
            return self.generate_weights(blend.second if blend.share else blend.first)
        first, second = self.generate_weights(blend.first), self.generate_weights(blend.second)
        return concatenate(scale(first, 1 - blend.share), scale(second, blend.share))


@contextmanager
def apply_weights(unet: nn.Module, weights: Weights, strength: float | Tensor | Strength = 1.0) -> Iterator[Attachment]:
    """The UNet with generated weights at work: y becomes y + strength * (x @ A^T) @ B^T. Afterwards nothing is left.

    Weights of one row act on all rows of the UNet's batch; others have a row for each (see `lora.select_rows`). A strength
    [rows] gives each row its own. Raises `ModelUnfit` for weights of another model.
    """
    shapes = {name: Layer(name, down.shape[-1], up.shape[-2]) for name, (down, up) in weights.items()}
    devices = check_fit(shapes, unet, "set of weights")
    moved = {name: (down.to(devices[name]), up.to(devices[name])) for name, (down, up) in weights.items()}  # None leaves them
    strength = strength if isinstance(strength, Strength) else Strength(strength)
    with attached(unet, [LowRankEdit(moved, strength)]) as attachment:
        yield attachment


def check_fit(layers: dict[str, Layer], unet: nn.Module, what: str) -> dict[str, torch.device | None]:
    """The device of each of these layers in the UNet, None for one without weights yet. Raises `ModelUnfit` where one is
    missing or has other widths."""
    projections = {p.name: p for p in find_projections(unet)}
    for name, layer in layers.items():
        if (found := projections.get(name)) is None:
            raise ModelUnfit(f"This {what} is for another model: the loaded one has no layer {name}.")
        if (found.in_width, found.out_width) != layer[1:]:
            raise ModelUnfit(
                f"This {what} is for another model: it maps width {layer.in_width} to {layer.out_width} at {name}, "
                f"and the loaded one {found.in_width} to {found.out_width}."
            )
    weights = {name: next(projections[name].module.parameters(), None) for name in layers}
    return {name: None if weight is None else weight.device for name, weight in weights.items()}


def _decoder(about: HypernetworkStructure, layers: Sequence[Layer]) -> HypernetworkDecoder:
    if about.decoder == "basis":
        return BasisDecoder(layers, about.embedding_dim, about.rank, about.basis_size)
    if about.decoder == "rank_token":
        return RankTokenDecoder(layers, about.embedding_dim, about.rank)
    return LidbDecoder(layers, about.embedding_dim, about.rank, about.auxiliary)


def _names(what: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{what} is a list of names.")
    if len(set(value)) < len(value):
        raise ConfigError(f"{what} names something twice.")
    return tuple(value)


def _check_number(name: str, value: Any) -> None:
    if type(value) is not int or not 0 < value <= _LARGEST:
        raise ConfigError(f"{name} is a whole number from 1 to {_LARGEST}, not {value!r}.")
