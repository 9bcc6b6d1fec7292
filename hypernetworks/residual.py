"""The residual hypernetwork: pairs of small networks on what the projections `to_k` and `to_v` of an attention layer read.

An input x becomes `x + strength * f(x)`, with one f for the keys and one for the values. f is built as AUTOMATIC1111's web UI
builds it (A1111, modules/hypernetworks/hypernetwork.py:45-117), or with skip connections as aria1th's
Hypernetwork-MonkeyPatch-Extension does (patches/hypernetwork.py), down to the names of the weights, so that files can be
exchanged. The strength is no part of f.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import activation as torch_activations

from .errors import ConfigError

Key = int | str
"""What a pair is found by: the width of its input, or the name of its attention layer."""

INITIALIZATIONS = ("zero", "Normal", "XavierUniform", "XavierNormal", "KaimingUniform", "KaimingNormal")

_LARGEST_MULTIPLE = 1000
_LARGEST_WIDTH = 2**20

_ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    **{name.lower(): getattr(torch_activations, name) for name in torch_activations.__all__},
    "linear": nn.Identity,
    "swish": nn.Hardswish,
}
_UNFIT = {
    "glu": "it halves the width of what it is given",
    "multiheadattention": "it is an attention layer and needs arguments that a hypernetwork file does not hold",
    "threshold": "it needs arguments that a hypernetwork file does not hold",
}
ACTIVATIONS = ("linear", *sorted(set(_ACTIVATIONS) - set(_UNFIT) - {"linear"}))
"""Names of A1111: lower-cased classes of `torch.nn.modules.activation`, "linear" for none, "swish" for Hardswish."""


@dataclass(frozen=True)
class ResidualStructure:
    """All that rebuilds an empty network of the same shape. Raises `ConfigError` for what cannot be built.

    `layer_structure`: widths of f's layers as multiples of its input's width, the first and the last are 1.
    `dropout_structure`: for each entry of `layer_structure` the share dropped after that layer (the first is unused); () = none.
    `activate_output`: the activation follows the last layer too (with skip connections it always does).
    `last_layer_dropout`: A1111's note of how a dropout structure came about, carried for its files; it changes nothing here.
    `skip_connection`, `upsample_linear`: aria1th's blocks, whose short cut is an interpolation or a learned matrix.
    """

    layer_structure: tuple[float, ...] = (1, 2, 1)
    activation: str = "linear"
    layer_norm: bool = False
    dropout_structure: tuple[float, ...] = ()
    activate_output: bool = False
    last_layer_dropout: bool = False
    skip_connection: bool = False
    upsample_linear: bool = False

    def __post_init__(self) -> None:
        multiples = _numbers(self.layer_structure, "layer structure")
        dropout = _numbers(self.dropout_structure or (), "dropout structure")
        activation = str(self.activation or "linear").lower()
        if len(multiples) < 2 or multiples[0] != 1 or multiples[-1] != 1:
            raise ConfigError(f"A layer structure begins and ends with 1, like 1, 2, 1; this one is {_listed(multiples)}.")
        if not all(0 < multiple <= _LARGEST_MULTIPLE for multiple in multiples):
            raise ConfigError(
                f"A layer structure holds multiples above 0 and up to {_LARGEST_MULTIPLE}; this one is {_listed(multiples)}."
            )
        if dropout and len(dropout) != len(multiples):
            raise ConfigError(
                f"A dropout structure has one number for each of the layer structure's {len(multiples)}, not {len(dropout)}."
            )
        if not all(0 <= share < 1 for share in dropout):
            raise ConfigError(f"Dropout is a share from 0 to below 1; this structure is {_listed(dropout)}.")
        if activation in _UNFIT:
            raise ConfigError(f"The activation {activation} cannot be used between two layers: {_UNFIT[activation]}.")
        if activation not in _ACTIVATIONS:
            raise ConfigError(f"There is no activation {activation!r}; there are {', '.join(ACTIVATIONS)}.")
        if self.upsample_linear and not self.skip_connection:
            raise ConfigError("Learned upsampling is a part of skip connections: switch both on, or neither.")
        object.__setattr__(self, "layer_structure", multiples)
        object.__setattr__(self, "dropout_structure", (0.0, *dropout[1:]) if any(dropout[1:]) else ())
        object.__setattr__(self, "activation", activation)

    @property
    def is_linear(self) -> bool:
        """Whether f is linear but for its biases, f(x) = W x + b, once nothing is dropped."""
        return self.activation == "linear" and not self.layer_norm

    @property
    def flattens(self) -> bool:
        """Whether one layer does what these do with fewer operations: not where a narrow layer makes them the cheaper ones."""
        operations = sum(a * b for a, b in zip(self.layer_structure, self.layer_structure[1:], strict=False))
        return self.is_linear and not self.skip_connection and operations > 1

    def widths(self, width: int) -> tuple[int, ...]:
        """Widths of the layers of a network whose input has `width` values, rounded down as A1111 does (hypernetwork.py:55)."""
        widths = tuple(int(width * multiple) for multiple in self.layer_structure)
        if min(widths) < 1:
            raise ConfigError(
                f"The layer structure {_listed(self.layer_structure)} leaves a layer of an input of width {width} empty."
            )
        return widths

    def dropout_after(self, layer: int) -> float:
        """The share dropped after the layer of that number, counted from 0."""
        return self.dropout_structure[layer + 1] if self.dropout_structure else 0.0


class ResidualMLP(nn.Module):
    """f: from x [..., width] to the residual f(x) [..., width], without x itself and without a strength.

    Linear -> activation (not after the last) -> LayerNorm -> Dropout, per layer; or aria1th's blocks R, then f(x) = R(x) - x.
    The weights' names are those of A1111's and aria1th's files. They are on the meta device until initialised or assigned.
    """

    def __init__(self, width: int, structure: ResidualStructure) -> None:
        super().__init__()
        self.skip_connection = structure.skip_connection
        widths = structure.widths(width)
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
            if structure.skip_connection:
                layers.append(SkipBlock(inputs, outputs, structure, structure.dropout_after(number)))
                continue
            activated = structure.activate_output or number < len(widths) - 2
            layers += [_linear(inputs, outputs), *_activation(structure, activated), *_layer_norm(structure, outputs)]
            layers += _dropout(structure.dropout_after(number))
        self.linear = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) - x if self.skip_connection else self.linear(x)

    def initialize(self, initialization: str, generator: torch.Generator) -> None:
        """Draws float32 weights on the CPU. "zero" makes f(x) = 0; the other names are A1111's (hypernetwork.py:70-98).

        Raises `ConfigError` where no zero start can be learned from, or none leaves x unchanged.
        """
        self.to_empty(device="cpu")
        for module in self.modules():
            if isinstance(module, nn.PReLU):
                nn.init.constant_(module.weight, module.init)
            elif isinstance(module, SkipBlock) and module.upsample_layer is not None:
                bound = module.upsample_layer.in_features**-0.5
                module.upsample_layer.weight.data.uniform_(-bound, bound, generator=generator)
        branches = [block.linear for block in self.linear] if self.skip_connection else [self.linear]
        for branch in branches:
            for module in branch:
                if isinstance(module, (nn.Linear, nn.LayerNorm)):
                    _draw(module, initialization, generator)
            if initialization == "zero":
                _begin_at_zero(branch)
        if initialization == "zero" and self.skip_connection:
            self._begin_with_identity()

    def _begin_with_identity(self) -> None:
        """With every branch at zero, the short cuts alone have to carry x to the end."""
        for block in self.linear:
            if block.upsample_layer is not None:
                block.upsample_layer.weight.data = _nearest(torch.eye(block.inputs), block.outputs).T.contiguous()
        places = torch.arange(self.linear[0].inputs, dtype=torch.float32)[None]
        carried = places
        for block in self.linear:
            carried = block.short_cut(carried)
        if not torch.equal(carried, places):
            raise ConfigError(
                "Zero initial weights are not possible here: short cuts through this layer structure do not bring the input back "
                "unchanged; use layers that are not narrower than the input, such as 1, 2, 1, or other initial weights."
            )


class SkipBlock(nn.Module):
    """One block of aria1th's: short cut + (Linear -> LayerNorm -> Dropout -> activation), [..., inputs] to [..., outputs]."""

    def __init__(self, inputs: int, outputs: int, structure: ResidualStructure, dropout: float) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.upsample_layer = _linear(inputs, outputs, bias=False) if structure.upsample_linear else None
        self.linear = nn.Sequential(
            _linear(inputs, outputs), *_layer_norm(structure, outputs), *_dropout(dropout), *_activation(structure, True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.short_cut(x) + self.linear(x)

    def short_cut(self, x: Tensor) -> Tensor:
        """The learned matrix, or the nearest neighbours along the width."""
        return _nearest(x, self.outputs) if self.upsample_layer is None else self.upsample_layer(x)


class ResidualHypernetwork(nn.Module):
    """Pairs of `ResidualMLP` for keys and values, found by the width of their input or by the name of their attention layer.

    `metadata` holds what else a file says about the network, as text (see docs/formats.md); `step` counts the training steps.
    """

    name: str = ""
    description: str = ""
    step: int = 0

    def __init__(
        self,
        widths: Mapping[Key, int],
        structure: ResidualStructure | None = None,
        initialization: str | None = "zero",
        seed: int = 0,
    ) -> None:
        """`widths`: key -> width of the pair's input. The same seed gives the same weights; no global random state is used.

        `initialization` None leaves the weights on the meta device for `assign`. Raises `ConfigError` for what cannot be built.
        """
        super().__init__()
        _check_widths(widths)
        if initialization is not None and initialization not in INITIALIZATIONS:
            raise ConfigError(f"There are no initial weights {initialization!r}; there are {', '.join(INITIALIZATIONS)}.")
        self.structure = structure or ResidualStructure()
        self.widths = dict(widths)
        self.metadata: dict[str, str] = {} if initialization is None else {"weight_initialization": initialization}
        self.pairs = nn.ModuleDict()
        generator = torch.Generator().manual_seed(seed)
        # Forge loads under inference_mode, and weights made in it could never be trained
        with torch.inference_mode(False), torch.no_grad():
            for key, width in self.widths.items():
                pair = nn.ModuleDict({part: ResidualMLP(width, self.structure) for part in "kv"})
                if initialization is not None:
                    for f in pair.values():
                        f.initialize(initialization, generator)
                self.pairs[_module_name(key)] = pair

    @property
    def keys(self) -> tuple[Key, ...]:
        """Widths, or names of attention layers."""
        return tuple(self.widths)

    @property
    def per_layer(self) -> bool:
        """Whether there is one pair per attention layer instead of one per width."""
        return any(isinstance(key, str) for key in self.widths)

    def pair(self, key: Key) -> tuple[ResidualMLP, ResidualMLP]:
        """The networks for keys and for values. Raises KeyError where there is no such pair."""
        if key not in self.widths:
            raise KeyError(key)
        pair = self.pairs[_module_name(key)]
        return pair["k"], pair["v"]

    def __contains__(self, key: object) -> bool:
        return key in self.widths

    def assign(self, key: Key, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Copies of the tensors of (K, V) become the pair's weights, as float32. Raises `ConfigError` where they do not fit."""
        for part, f, state in zip("KV", self.pair(key), states, strict=True):
            wanted = {name: tuple(weight.shape) for name, weight in f.state_dict().items()}
            found = {name: tuple(weight.shape) for name, weight in state.items()}
            if odd := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
                raise ConfigError(
                    f"its {part} network for {key} does not fit its structure: {odd[0]} is {_shape(found.get(odd[0]))} "
                    f"where {_shape(wanted.get(odd[0]))} is expected."
                )
            if odd := [name for name, weight in state.items() if not weight.is_floating_point()]:
                raise ConfigError(
                    f"its {part} network for {key} holds something else than weights: {odd[0]} is {state[odd[0]].dtype}."
                )
            with torch.inference_mode(False), torch.no_grad():
                copies = {name: weight.detach().to(torch.float32, copy=True).contiguous() for name, weight in state.items()}
                f.load_state_dict(copies, assign=True)


def flattened(network: ResidualHypernetwork) -> ResidualHypernetwork:
    """The same function for generation, in one layer per network: W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2).

    The network itself where its structure does not flatten. Computed in float32 where the weights are; x itself is no part of the matrix,
    so that rounding to half precision touches the change alone.
    """
    if not network.structure.flattens:
        return network
    flat = ResidualHypernetwork(network.widths, ResidualStructure((1, 1)), initialization=None)
    for key in network.keys:
        flat.assign(key, [_flat_state(f) for f in network.pair(key)])
    flat.name, flat.description, flat.step, flat.metadata = network.name, network.description, network.step, network.metadata
    return flat.train(network.training)


@torch.no_grad()
def _flat_state(f: ResidualMLP) -> dict[str, Tensor]:
    """The one layer's weights. Dropout lets everything through in generation."""
    first, *rest = (module for module in f.linear if isinstance(module, nn.Linear))
    weight, bias = first.weight.float(), first.bias.float()
    for layer in rest:
        weight, bias = layer.weight.float() @ weight, layer.weight.float() @ bias + layer.bias.float()
    return {"linear.0.weight": weight, "linear.0.bias": bias}


def _check_widths(widths: Mapping[Key, int]) -> None:
    if not widths:
        raise ConfigError("A hypernetwork needs at least one pair of networks.")
    if len({type(key) for key in widths}) > 1:
        raise ConfigError("A hypernetwork has pairs by width or pairs by attention layer, not both.")
    if any(isinstance(key, int) and key != width for key, width in widths.items()):
        raise ConfigError("A pair that is found by width takes inputs of that width.")
    if not all(isinstance(width, int) and 0 < width <= _LARGEST_WIDTH for width in widths.values()):
        raise ConfigError(f"The width of a pair's input is a whole number from 1 to {_LARGEST_WIDTH}.")


def _numbers(values: Sequence[float], what: str) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise ConfigError(f"A {what} is a list of numbers, like 1, 2, 1.") from None


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers) or "empty"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else " x ".join(map(str, shape)) or "a single number"


def _module_name(key: Key) -> str:
    return str(key).replace(".", "/")  # a dot would end the name of a module


class Linear(nn.Linear):
    """Without weights at first."""

    def reset_parameters(self) -> None:
        """Nothing: `initialize` and `assign` give the weights. torch's own draws take most of the time that an empty layer takes."""


def _linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    return Linear(inputs, outputs, bias=bias, device="meta", dtype=torch.float32)


def _layer_norm(structure: ResidualStructure, width: int) -> list[nn.Module]:
    return [nn.LayerNorm(width, device="meta", dtype=torch.float32)] if structure.layer_norm else []


def _dropout(share: float) -> list[nn.Module]:
    return [nn.Dropout(share)] if share > 0 else []


def _activation(structure: ResidualStructure, wanted: bool) -> list[nn.Module]:
    if not wanted or structure.activation == "linear":
        return []
    if structure.activation in ("softmax", "softmin", "logsoftmax"):
        return [
            _ACTIVATIONS[structure.activation](dim=0)
        ]  # what torch picks for [rows, tokens, width] where A1111 names no dimension
    return [_ACTIVATIONS[structure.activation]()]


def _nearest(x: Tensor, width: int) -> Tensor:
    """[..., n] to [..., width], each value that of its nearest neighbour."""
    if x.shape[-1] == width:
        return x
    rows = F.interpolate(x.reshape(1, -1, x.shape[-1]), size=width, mode="nearest-exact")
    return rows.view(*x.shape[:-1], width)


def _draw(module: nn.Linear | nn.LayerNorm, initialization: str, generator: torch.Generator) -> None:
    """First weights; biases are 0. All but "zero" as A1111 does, which draws a LayerNorm's gains from Normal(0, 0.01) too."""
    module.bias.data.zero_()
    if isinstance(module, nn.LayerNorm):
        if initialization == "zero":
            module.weight.data.fill_(1)
        else:
            module.weight.data.normal_(0, 0.01, generator=generator)
        return
    outputs, inputs = module.weight.shape
    deviation = {
        "zero": inputs**-0.5,  # keeps the variance from layer to layer (LeCun et al. 1998)
        "Normal": 0.01,
        "Xavier": (2 / (inputs + outputs)) ** 0.5,  # Glorot and Bengio 2010
        "Kaiming": (2 / inputs) ** 0.5,  # He et al. 2015; A1111's choice of gain is this one for every activation
    }[initialization.removesuffix("Uniform").removesuffix("Normal") or "Normal"]
    if initialization.endswith("Uniform"):
        module.weight.data.uniform_(-(3**0.5) * deviation, 3**0.5 * deviation, generator=generator)
    else:
        module.weight.data.normal_(0, deviation, generator=generator)


def _begin_at_zero(branch: nn.Sequential) -> None:
    """Zeroes the factor that is applied last, and it alone: two zero factors in a row would never get a gradient.

    Of a LayerNorm that factor is its gain (as in Goyal et al. 2017, section 5.1), not the Linear before it: from a zero input the
    LayerNorm would blow the very first update up to unit variance.
    """
    last = max(number for number, module in enumerate(branch) if isinstance(module, (nn.Linear, nn.LayerNorm)))
    branch[last].weight.data.zero_()
    for module in branch[last + 1 :]:
        if not isinstance(module, nn.Dropout) and not _passes_zero(module):
            raise ConfigError(
                f"Zero initial weights are not possible with {type(module).__name__} at the output, which is not 0 at 0 or has "
                "no slope there; use another activation (swish, tanh, ...), none at the output, or other initial weights."
            )


def _passes_zero(activation: nn.Module) -> bool:
    with torch.enable_grad():
        x = torch.zeros(2, 2, 2, requires_grad=True)
        y = activation(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
    return not y.any() and bool(slope.all())
