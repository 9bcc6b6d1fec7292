"""Several residual hypernetworks as one: the average of their weights, or one after the other where that is exactly one network.

*Average*, for networks of the same structure: θ = Σ wᵢ θᵢ / Σ wᵢ over every weight θ. It is an average, so 1 and 1 mean half and half, and
how strong the result acts is said in its tag. A negative w moves away from a network. Averages are of use for networks that began with the
same weights, such as checkpoints of one run or runs that went on from one file ("Model soups", Wortsman et al. 2022, section 3): hidden
layers that were learned apart do not match each other.

*Chain*, for networks whose f is affine, f(x) = W x + b, as it is without activation and layer norm, whatever the layers' widths. What the
tags `<hypernet:1:m₁> <hypernet:2:m₂>` do, x₁ = x + m₁ f₁(x) and then x₂ = x₁ + m₂ f₂(x₁), is then affine too, and with I the identity

    x₂ = x + A x + a,   A = (I + m₂ W₂)(I + m₁ W₁) - I,   a = (I + m₂ W₂) m₁ b₁ + m₂ b₂.

So one layer per pair holds the whole chain, exactly but for the rounding to float32. The strengths are part of it: at half its strength the
result is half of A x + a, which is not the chain at half its strengths.
"""
from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ConfigError
from .networks import acts_on_uncond, outline
from .prompt import ActiveNetwork, tag
from .residual import Key, ResidualHypernetwork, ResidualMLP, ResidualStructure

_SHARED = ("base_model", "base_model_hash", "base_model_family", "prediction_type", "vae", "clip_skip")


@dataclass(frozen=True)
class Part:
    """One of the networks that become one. `weight` is its share of an average, or its strength in a chain."""

    name: str
    network: ResidualHypernetwork
    weight: float
    hash: str = ""


def average(parts: Sequence[Part]) -> ResidualHypernetwork:
    """The weighted average; its negative prompt's rows stay as they are if those of one part do.

    Raises `ConfigError` for fewer than two parts, for parts of different structures, and for weights without a positive sum.
    """
    _check(parts)
    total = sum(part.weight for part in parts)
    if not total > 0:
        raise ConfigError(f"The weights of an average must add up to more than 0; these add up to {total:g}.")
    first = parts[0]
    for part in parts[1:]:
        if outline(part.network) != outline(first.network):
            instead = _tags_instead(parts) if _not_one_network(parts) else "Merge them one after the other instead."
            raise ConfigError(f"{first.name} and {part.name} cannot be averaged, for {_difference(first.network, part.network)}. {instead}")
    merged = ResidualHypernetwork(first.network.widths, first.network.structure, initialization=None)
    for key in merged.keys:
        merged.assign(key, [_averaged(parts, key, place, total) for place in range(2)])
    uncond = all(acts_on_uncond(part.network) for part in parts)
    return _finished(merged, parts, "average", uncond)


def chain(parts: Sequence[Part]) -> ResidualHypernetwork:
    """The parts one after the other, each at its strength, as one network of a single layer per pair.

    A pair that only some parts have is the chain of those. Raises `ConfigError`, with the tags that do the same, where one network cannot be
    what the chain is.
    """
    _check(parts)
    if reason := _not_one_network(parts):
        raise ConfigError(f"{reason} {_tags_instead(parts)}")
    widths = {key: width for part in parts for key, width in part.network.widths.items()}
    merged = ResidualHypernetwork(widths, ResidualStructure((1, 1)), initialization=None)
    for key, width in widths.items():
        merged.assign(key, [_chained(parts, key, place, width) for place in range(2)])
    return _finished(merged, parts, "chain", acts_on_uncond(parts[0].network))


def tags(parts: Sequence[Part]) -> str:
    """What does in a prompt what a chain of the parts does."""
    return " ".join(tag(ActiveNetwork(part.name, strength=part.weight)) for part in parts)


def _tags_instead(parts: Sequence[Part]) -> str:
    return f"Write the tags of all into the prompt instead: {tags(parts)}"


def _check(parts: Sequence[Part]) -> None:
    if len(parts) < 2:
        raise ConfigError("Merging takes at least two hypernetworks.")
    for part in parts:
        if not math.isfinite(part.weight):
            raise ConfigError(f"The weight of {part.name} cannot be {part.weight}: it is a number.")


def _difference(one: ResidualHypernetwork, other: ResidualHypernetwork) -> str:
    if one.per_layer != other.per_layer:
        return "one has a pair per attention layer and the other one per width"
    if one.widths != other.widths:
        return f"they act on different {'layers' if one.per_layer else 'widths'}"
    return "their networks are built differently"


def _not_one_network(parts: Sequence[Part]) -> str:
    """A sentence about why no single network does what the chain does; empty where one does."""
    for part in parts:
        structure = part.network.structure
        if not structure.is_linear:
            bend = "layer norm" if structure.layer_norm else f"the activation {structure.activation}"
            return f"A chain with {part.name} cannot be one file, for {bend} makes it more than a linear map."
    first, widths = parts[0], {}
    for part in parts:
        network = part.network
        if network.per_layer != first.network.per_layer:
            return f"{first.name} and {part.name} cannot be one file: {_difference(first.network, network)}."
        if acts_on_uncond(network) != acts_on_uncond(first.network):
            return f"{first.name} and {part.name} cannot be one file: only one of them leaves the negative prompt's side alone."
        if any(widths.setdefault(key, width) != width for key, width in network.widths.items()):
            return f"{first.name} and {part.name} cannot be one file: they were made for different models."
    return ""


def _averaged(parts: Sequence[Part], key: Key, place: int, total: float) -> dict[str, Tensor]:
    """The averaged weights of f for keys (`place` 0) or values (1), in float64."""
    states = [part.network.pair(key)[place].state_dict() for part in parts]
    return {
        name: sum(part.weight / total * state[name].double() for part, state in zip(parts, states, strict=True)) for name in states[0]
    }


def _chained(parts: Sequence[Part], key: Key, place: int, width: int) -> dict[str, Tensor]:
    """The single layer of the chain's f for keys (`place` 0) or values (1): A [width, width] and a [width], in float64."""
    identity = torch.eye(width, dtype=torch.float64)
    matrix, offset = torch.zeros_like(identity), identity.new_zeros(width)
    for part in parts:
        if key in part.network:
            weight, bias = _affine(part.network.pair(key)[place], width)
            matrix = matrix + part.weight * weight @ (identity + matrix)
            offset = offset + part.weight * (weight @ offset + bias)
    return {"linear.0.weight": matrix, "linear.0.bias": offset}


def _affine(f: ResidualMLP, width: int) -> tuple[Tensor, Tensor]:
    """W [width, width] and b [width] of an affine f, in float64: what it makes of the unit vectors and of 0."""
    with torch.inference_mode(False), torch.no_grad():
        f = copy.deepcopy(f).double().eval()  # in eval mode dropout lets everything through
        bias = f(torch.zeros(1, width, dtype=torch.float64))[0]
        return (f(torch.eye(width, dtype=torch.float64)) - bias).T, bias


def _finished(merged: ResidualHypernetwork, parts: Sequence[Part], how: str, uncond: bool) -> ResidualHypernetwork:
    """The merged network with what its file is to say. Raises `ConfigError` where its weights are not finite."""
    if not all(weight.isfinite().all() for weight in merged.parameters()):
        raise ConfigError("The merged weights are not numbers any more: choose smaller weights, or look for a damaged file among the parts.")
    known = [part.network.metadata for part in parts]
    merged.metadata = {name: known[0][name] for name in _SHARED if name in known[0] and all(one.get(name) == known[0][name] for one in known)}
    merged.metadata["merged_by"] = how
    merged.metadata["merged_from"] = json.dumps([{"name": part.name, "hash": part.hash, "weight": part.weight} for part in parts])
    merged.metadata["uncond"] = "yes" if uncond else "no"
    return merged.eval()
