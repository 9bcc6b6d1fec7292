"""From a token per layer to the layer's low-rank delta: three ways to spend parameters.

In all of them exactly one factor begins at zero: A is drawn from Normal(0, 1 / in), B is zero. With both at zero no gradient
would flow; with none the untrained network would damage the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Layer(NamedTuple):
    """A projection that gets a delta: its canonical name and the widths it maps between."""

    name: str
    in_width: int
    out_width: int


class HypernetworkDecoder(nn.Module):
    """Tokens [b, L, width] to {layer name: (A [b, r, in], B [b, out, r])}, with learned offsets: A = A0 + dA, B = B0 + dB.

    Weights are on the meta device until `initialize`.
    """

    def __init__(self, layers: Sequence[Layer], width: int, rank: int) -> None:
        super().__init__()
        self.layers, self.width, self.rank = tuple(layers), width, rank
        self.base = _factors({layer.name: self._shapes(layer) for layer in self.layers})

    def forward(self, tokens: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """The factors of every layer, in order."""
        weights = {}
        for layer, (down, up) in zip(self.layers, self.deltas(tokens), strict=True):
            base = self.base[module_name(layer.name)]
            weights[layer.name] = self._expand(layer, base["down"] + down, base["up"] + up)
        return weights

    def deltas(self, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The part (dA, dB) of every layer that depends on the condition."""
        raise NotImplementedError

    def initialize(self, generator: torch.Generator) -> None:
        """Draws the weights; the modules must be on the CPU."""
        for pair in self.base.values():
            _begin(pair, generator)

    def _shapes(self, layer: Layer) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (self.rank, layer.in_width), (layer.out_width, self.rank)

    def _expand(self, layer: Layer, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        return down, up


class BasisDecoder(HypernetworkDecoder):
    """dA = sum_k alpha_k A_k and dB = sum_k beta_k B_k: every layer owns `basis_size` of both, one head gives all
    coefficients."""

    def __init__(self, layers: Sequence[Layer], width: int, rank: int, basis_size: int) -> None:
        super().__init__(layers, width, rank)
        shapes = {layer.name: self._shapes(layer) for layer in self.layers}
        self.basis = _factors({name: ((basis_size, *down), (basis_size, *up)) for name, (down, up) in shapes.items()})
        self.head = nn.Linear(width, 2 * basis_size, bias=False, device="meta")

    def deltas(self, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
        alphas, betas = self.head(tokens).chunk(2, -1)  # [b, L, K]
        bases = self.basis.values()
        return [
            (_combine(alpha, basis["down"]), _combine(beta, basis["up"]))
            for alpha, beta, basis in zip(alphas.unbind(1), betas.unbind(1), bases, strict=True)
        ]

    def initialize(self, generator: torch.Generator) -> None:
        super().initialize(generator)
        for pair in self.basis.values():
            _begin(pair, generator)
        # K coefficients of variance 1 / K: dA gets the variance 1 / in that hyperfan-in asks for (Chang et al. 2020)
        self.head.weight.data.normal_(0, (2 / (self.width * self.head.out_features)) ** 0.5, generator=generator)


class RankTokenDecoder(HypernetworkDecoder):
    """A token per rank and layer; a head per shape of layer gives a row of A and a column of B."""

    def __init__(self, layers: Sequence[Layer], width: int, rank: int) -> None:
        super().__init__(layers, width, rank)
        with torch.device("meta"):
            # a factor per rank, not only a summand: behind a linear head the rows would otherwise differ by constants
            self.rank_scale = nn.Parameter(torch.empty(rank, width))
            self.rank_shift = nn.Parameter(torch.empty(rank, width))
            self.norm = nn.LayerNorm(width)
            self.heads = nn.ModuleDict()
            for layer in self.layers:
                if (shape := _shape_name(layer)) not in self.heads:
                    down = nn.Linear(width, layer.in_width, bias=False)
                    self.heads[shape] = nn.ModuleDict({"down": down, "up": nn.Linear(width, layer.out_width, bias=False)})

    def deltas(self, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
        deltas: dict[int, tuple[Tensor, Tensor]] = {}
        for shape, head in self.heads.items():
            places = [place for place, layer in enumerate(self.layers) if _shape_name(layer) == shape]
            ranks = self.norm(tokens[:, places, None] * self.rank_scale + self.rank_shift)  # [b, layers, r, width]
            down, up = head["down"](ranks), head["up"](ranks).mT
            deltas |= dict(zip(places, zip(down.unbind(1), up.unbind(1), strict=True), strict=True))
        return [deltas[place] for place in range(len(self.layers))]

    def initialize(self, generator: torch.Generator) -> None:
        super().initialize(generator)
        self.rank_scale.data.normal_(generator=generator)
        self.rank_shift.data.zero_()
        self.norm.weight.data.fill_(1)
        self.norm.bias.data.zero_()
        for head in self.heads.values():  # hyperfan-in (Chang et al. 2020)
            head["down"].weight.data.normal_(0, (self.width * head["down"].out_features) ** -0.5, generator=generator)
            head["up"].weight.data.zero_()


class LidbDecoder(HypernetworkDecoder):
    """Lightweight DreamBooth (Ruiz et al. 2023, HyperDreamBooth, section 4.1): only small factors are generated, [r, a] and
    [b, r].

    Frozen matrices with orthonormal rows or columns carry them to the layer's widths. There is one per width; they are
    buffers, and stand in the file. A layer narrower than a or b takes its own width instead.
    """

    def __init__(self, layers: Sequence[Layer], width: int, rank: int, auxiliary: tuple[int, int]) -> None:
        self.auxiliary = auxiliary
        super().__init__(layers, width, rank)
        with torch.device("meta"):
            for layer in self.layers:
                inner_in, inner_out = self._inner(layer)
                self.register_buffer(f"auxiliary_down_{layer.in_width}", torch.empty(inner_in, layer.in_width))
                self.register_buffer(f"auxiliary_up_{layer.out_width}", torch.empty(layer.out_width, inner_out))
            widest = [max(self._inner(layer)[side] for layer in self.layers) for side in (0, 1)]
            self.down, self.up = (nn.Linear(width, rank * inner, bias=False) for inner in widest)

    def deltas(self, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
        down = self.down(tokens).unflatten(-1, (self.rank, -1))  # [b, L, r, a]
        up = self.up(tokens).unflatten(-1, (-1, self.rank))  # [b, L, b, r]
        sizes = map(self._inner, self.layers)
        return [(a[..., :i], b[..., :o, :]) for a, b, (i, o) in zip(down.unbind(1), up.unbind(1), sizes, strict=True)]

    def initialize(self, generator: torch.Generator) -> None:
        super().initialize(generator)
        for name, matrix in self.named_buffers():
            tall = max(matrix.shape), min(matrix.shape)
            orthonormal = torch.linalg.qr(torch.randn(tall, generator=generator))[0]
            matrix.copy_(orthonormal.T if name.startswith("auxiliary_down") else orthonormal)
        inner = self.down.out_features // self.rank
        self.down.weight.data.normal_(0, (self.width * inner) ** -0.5, generator=generator)
        self.up.weight.data.zero_()

    def _inner(self, layer: Layer) -> tuple[int, int]:
        return min(self.auxiliary[0], layer.in_width), min(self.auxiliary[1], layer.out_width)

    def _shapes(self, layer: Layer) -> tuple[tuple[int, ...], tuple[int, ...]]:
        inner_in, inner_out = self._inner(layer)
        return (self.rank, inner_in), (inner_out, self.rank)

    def _expand(self, layer: Layer, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        carry_down = getattr(self, f"auxiliary_down_{layer.in_width}")
        return down @ carry_down, getattr(self, f"auxiliary_up_{layer.out_width}") @ up


def module_name(layer: str) -> str:
    """A layer's name as a module may have it: a dot would end the name."""
    return layer.replace(".", "/")


def _factors(shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> nn.ModuleDict:
    """Per layer the parameters `down` and `up`."""
    return nn.ModuleDict(
        {
            module_name(name): nn.ParameterDict(
                {part: nn.Parameter(torch.empty(shape, device="meta")) for part, shape in zip(("down", "up"), pair, strict=True)}
            )
            for name, pair in shapes.items()
        }
    )


def _begin(pair: nn.ParameterDict, generator: torch.Generator) -> None:
    pair["down"].data.normal_(0, pair["down"].shape[-1] ** -0.5, generator=generator)
    pair["up"].data.zero_()


def _combine(coefficients: Tensor, basis: Tensor) -> Tensor:
    """[b, K] and [K, ...] to [b, ...]."""
    return (coefficients @ basis.flatten(1)).unflatten(-1, basis.shape[1:])


def _shape_name(layer: Layer) -> str:
    return f"{layer.in_width}x{layer.out_width}"
