"""Edits of attention layers, put on any Stable Diffusion UNet as hooks and taken off again.

A *projection* is one of the linear maps `to_q`, `to_k`, `to_v`, `to_out.0` of an attention layer. A residual hypernetwork changes the
input of `to_k` and `to_v`: `x + m * f(x)` (A1111 modules/hypernetworks/hypernetwork.py:357-389). Low-rank deltas change the output of
any projection: `y + s * (x @ A^T) @ B^T`. The UNet's own weights and classes are never touched.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ModelUnfit

PROJECTION = re.compile(r"^(?P<layer>.+\.(?P<attention>attn[12]))\.to_(?P<part>q|k|v|out(?=\.0))(\.0)?$")
BLOCKS = {"down_blocks": "input", "mid_block": "middle", "up_blocks": "output"}


@dataclass(frozen=True)
class Projection:
    """One linear map of one attention layer. `layer` is diffusers' name of the attention layer, whatever the UNet calls it."""

    layer: str  # "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    attention: str  # "attn1" (of the picture to itself) or "attn2" (of the picture to the context)
    part: str  # "q", "k", "v" or "out"
    block: str  # "input", "middle" or "output"
    in_width: int
    out_width: int
    module: nn.Module

    @property
    def name(self) -> str:
        """The projection's name as LoRA tools write it in diffusers' manner: `<layer>.to_k`, `<layer>.to_out.0`."""
        return f"{self.layer}.to_{self.part}" + (".0" if self.part == "out" else "")


def find_projections(unet: nn.Module) -> list[Projection]:
    """All attention projections of a UNet with diffusers' or with A1111's and Forge's names.

    Found by name, not by class: Forge's Linear is no `nn.Linear` (backend/operations.py:126). Raises `ModelUnfit` where there are none.
    """
    prefixes = _canonical_prefixes(unet)
    found = []
    for name, module in unet.named_modules():
        match = PROJECTION.match(name)
        if not match:
            continue
        layer = _canonical(match["layer"], prefixes)
        block = BLOCKS.get(layer.split(".", 1)[0])
        if block is None:
            continue
        out_width, in_width = _shape(module)
        found.append(Projection(layer, match["attention"], match["part"], block, in_width, out_width, module))
    if not found:
        raise ModelUnfit(f"The loaded model ({type(unet).__name__}) has no attention layers that a hypernetwork could change.")
    return found


def _shape(module: nn.Module) -> tuple[int, int]:
    """(out, in) width. The attributes come first: the weight of a quantised layer has another shape."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return module.out_features, module.in_features
    return tuple(module.weight.shape[:2])


def _canonical(layer: str, prefixes: Mapping[str, str]) -> str:
    for prefix, canonical in prefixes.items():
        if layer.startswith(prefix + "."):
            return canonical + layer[len(prefix):]
    return layer


def _canonical_prefixes(unet: nn.Module) -> dict[str, str]:
    """A1111's name of each spatial transformer -> diffusers' name, read off the UNet's own structure (empty for diffusers).

    `input_blocks` is one flat list in which a lone downsampler (it has `op`) ends a level; in `output_blocks` an upsampler, last in its
    entry, does (ldm/modules/diffusionmodules/openaimodel.py, class UNetModel).
    """
    if not hasattr(unet, "input_blocks"):
        return {}
    prefixes = {}
    for side, blocks, canonical in (("input", unet.input_blocks, "down_blocks"), ("output", unet.output_blocks, "up_blocks")):
        level = count = 0
        for i, entry in enumerate(blocks):
            for j, child in enumerate(entry):
                if hasattr(child, "transformer_blocks"):
                    prefixes[f"{side}_blocks.{i}.{j}"] = f"{canonical}.{level}.attentions.{count}"
                    count += 1
            last = entry[len(entry) - 1]
            if hasattr(last, "op") if side == "input" else (hasattr(last, "conv") and not hasattr(last, "in_layers")):
                level, count = level + 1, 0
    middle = [j for j, child in enumerate(unet.middle_block) if hasattr(child, "transformer_blocks")]
    return prefixes | {f"middle_block.{j}": f"mid_block.attentions.{k}" for k, j in enumerate(middle)}


def network_widths(
    unet: nn.Module, target_layers: Sequence[str] = ("attn1", "attn2"), per_layer: bool = False,
    blocks: Sequence[str] = ("input", "middle", "output"),
) -> dict[int | str, int]:  # fmt: skip
    """What a new residual hypernetwork for this UNet consists of: pair key -> input width.

    Keys are widths (A1111's manner) or, with `per_layer`, the canonical names of the attention layers.
    """
    inputs = [p for p in find_projections(unet) if p.part == "k" and p.attention in target_layers and p.block in blocks]
    if per_layer:  # in diffusers' order, the middle last, whatever the UNet's own is: a seed then gives a layer the same weights everywhere
        return {p.layer: p.in_width for p in sorted(inputs, key=lambda p: p.block == "middle")}
    return {width: width for width in sorted({p.in_width for p in inputs})}


@dataclass(frozen=True)
class Strength:
    """How strongly an edit acts: the product of `overall`, the projection's part and its block.

    `overall` may have one number for each row of the batch, as a tensor [rows] or a sequence.
    """

    overall: float | Tensor | Sequence[float] = 1.0
    k: float = 1.0
    v: float = 1.0
    input: float = 1.0
    middle: float = 1.0
    output: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.overall, Sequence):
            object.__setattr__(self, "overall", torch.tensor(self.overall))

    def factor(self, part: str, block: str) -> float:
        """What `overall` is multiplied by at a projection."""
        return {"k": self.k, "v": self.v}.get(part, 1.0) * getattr(self, block)

    def at(self, part: str, block: str, like: Tensor) -> float | Tensor:
        """The strength at a projection, shaped to multiply `like` [rows, ...]."""
        factor = self.factor(part, block)
        if not isinstance(self.overall, Tensor):
            return self.overall * factor
        rows = self.overall.to(like.device, like.dtype) * factor
        return rows.view(-1, *[1] * (like.ndim - 1))

    @property
    def is_known(self) -> bool:
        """Whether its numbers can be read without waiting for a device."""
        return not isinstance(self.overall, Tensor) or self.overall.device.type == "cpu"

    def key(self, part: str, block: str) -> tuple:
        """Equal for equal strengths; where they are not known, for one and the same tensor, as long as that lives."""
        factor = self.factor(part, block)
        if not isinstance(self.overall, Tensor):
            return (self.overall * factor,)
        return (*(self.overall.tolist() if self.is_known else [id(self.overall)]), factor)

    def is_zero(self, part: str, block: str) -> bool:
        """Whether the edit does nothing at all at a projection."""
        return self.factor(part, block) == 0 or (not isinstance(self.overall, Tensor) and self.overall == 0)


class ResidualEdit:
    """A residual hypernetwork at work. `strength` may be replaced while attached; it counts from the next pass on.

    `observe`, where set, is called with (x, f(x)) at every evaluation.
    """

    def __init__(self, network: Any, strength: Strength | None = None) -> None:
        self.network = network
        self.strength = strength or Strength()
        self.observe: Callable[[Tensor, Tensor], None] | None = None

    def network_for(self, projection: Projection) -> nn.Module | None:
        """The small network f for the input of this projection, None where the hypernetwork has none."""
        key = projection.layer if self.network.per_layer else projection.in_width
        if projection.part not in ("k", "v") or key not in self.network:
            return None
        if self.network.widths[key] != projection.in_width:
            raise ModelUnfit(
                f"The hypernetwork {self.network.name!r} expects width {self.network.widths[key]} at {projection.layer}, "
                f"but the loaded model has {projection.in_width} there; it was made for another model."
            )
        return self.network.pair(key)[0 if projection.part == "k" else 1]


class LowRankEdit:
    """Low-rank deltas, per projection name a pair A [b or 1, r, in] and B [b or 1, out, r]; b is the batch's number of rows.

    The values of `weights` may be replaced while attached, its names may not.
    """

    def __init__(self, weights: Mapping[str, tuple[Tensor, Tensor]], strength: Strength | None = None) -> None:
        self.weights = weights
        self.strength = strength or Strength()


Edit = ResidualEdit | LowRankEdit


@contextmanager
def attached(unet: nn.Module, edits: Sequence[Edit]) -> Iterator[Attachment]:
    """The UNet with the edits at work, residual ones chained in their order. Afterwards nothing is left, also after an exception."""
    attachment = Attachment(unet, edits)
    try:
        attachment.put_on()
        yield attachment
    finally:
        attachment.remove()


class Attachment:
    """Edits for a UNet, at work between `put_on()` and `remove()`. One at a time sees a UNet's pass; its tensors live until the next pass
    or removal.

    In one pass every cross-attention layer gets the same context tensor. Networks that several layers share are evaluated on it once,
    before the first block: inside a block the result would be recorded within a checkpointed region, whose recomputation then
    finds it cached and breaks. A second pass before the first one's backward is fine without checkpointing only.

    `frozen` promises that the networks' weights stay as they are as long as the attachment lives. What was evaluated on the CPU without
    gradients is then kept for passes with the same context and strengths, also over `remove()` and `put_on()`. The context is compared with
    a copy, value by value; on another device that would make the host wait at each pass.
    """

    def __init__(self, unet: nn.Module, edits: Sequence[Edit], frozen: bool = False) -> None:
        self.evaluations = 0  # of small networks, since attached
        self._frozen = frozen
        self._context: Tensor | None = None  # of the pass at hand, known by identity
        self._edited: dict[tuple, Tensor] = {}
        self._seen: Tensor | None = None  # a copy of the context that `_edited` belongs to, where that outlives its pass
        self._handles: list[Any] = []
        self._unet, self._edits = unet, list(edits)
        self._projections = find_projections(unet)
        self._check_fit(self._projections, edits)
        self._chains = [
            _Chain(projection, links)
            for projection in self._projections
            if (links := [(edit, f) for edit in edits if isinstance(edit, ResidualEdit) and (f := edit.network_for(projection)) is not None])
        ]

    def put_on(self) -> None:
        """Puts the hooks on the UNet, if they are not there. What was found out about the UNet is kept, so that this costs little."""
        if self._handles:
            return
        try:
            self._hook()
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Takes every hook off. May be called again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._end_pass()

    @staticmethod
    def _check_fit(projections: Sequence[Projection], edits: Sequence[Edit]) -> None:
        names = {p.name for p in projections}
        for edit in edits:
            if isinstance(edit, LowRankEdit):
                if missing := sorted(set(edit.weights) - names):
                    raise ModelUnfit(f"The loaded model has no layer {missing[0]} ({len(missing)} of {len(edit.weights)} are missing).")
            elif not any(edit.network_for(p) for p in projections):
                has = ", ".join(str(key) for key in edit.network.keys[:6])
                widths = ", ".join(str(w) for w in sorted({p.in_width for p in projections if p.part == "k"}))
                raise ModelUnfit(
                    f"The hypernetwork {edit.network.name!r} is for {has}; the loaded model has the widths {widths} and none of these layers."
                )

    def _hook(self) -> None:
        for chain in self._chains:
            self._handles.append(chain.module.register_forward_pre_hook(self._before(chain)))
        for edit in self._edits:
            if isinstance(edit, LowRankEdit):
                for projection in self._projections:
                    if projection.name in edit.weights:
                        self._handles.append(projection.module.register_forward_hook(_add_low_rank(projection, edit)))
        if shared := _shared(self._chains):
            self._handles.append(self._unet.register_forward_pre_hook(self._evaluate_shared(shared), with_kwargs=True))
            self._handles.append(self._unet.register_forward_hook(self._after_pass, always_call=True))

    def _before(self, chain: _Chain):
        def hook(module: nn.Module, inputs: tuple) -> tuple:
            x = inputs[0]
            if x is self._context:
                edited = self._edited.get(chain.key())
                if edited is not None:
                    return (edited, *inputs[1:])
            return (self._evaluate(chain, x), *inputs[1:])

        return hook

    def _evaluate(self, chain: _Chain, x: Tensor) -> Tensor:
        for edit, f in chain.links:
            if not edit.strength.is_zero(chain.part, chain.block):
                x = self._add_residual(x, edit, f, chain)
        return x

    def _add_residual(self, x: Tensor, edit: ResidualEdit, f: nn.Module, chain: _Chain) -> Tensor:
        self.evaluations += 1
        residual = f(x.to(next(f.parameters()).dtype))
        if edit.observe is not None:
            edit.observe(x, residual)
        return _add(x, residual, edit.strength.at(chain.part, chain.block, residual), in_place=edit.observe is None)

    def _evaluate_shared(self, chains: Sequence[_Chain]):
        def hook(unet: nn.Module, inputs: tuple, named: dict) -> None:
            self._end_pass()
            context = _context_of(inputs, named)
            if context is None:
                return
            before = self._begin_pass(context)
            for chain in chains:
                if chain.in_width == context.shape[-1]:
                    self._evaluate_prefixes(chain, context, before)
            self._context = context

        return hook

    def _begin_pass(self, context: Tensor) -> dict[tuple, Tensor]:
        """What is known from the pass before and holds for this one too."""
        before, self._edited = self._edited, {}
        if not self._outlives_its_pass(context):
            self._seen = None
            return {}
        if self._seen is not None and self._seen.dtype == context.dtype and torch.equal(self._seen, context):
            return before
        self._seen = context.clone()
        return {}

    def _outlives_its_pass(self, context: Tensor) -> bool:
        return (
            self._frozen and not torch.is_grad_enabled() and context.device.type == "cpu"
            and all(edit.strength.is_known and edit.observe is None for edit in self._edits if isinstance(edit, ResidualEdit))
        )  # fmt: skip

    def _evaluate_prefixes(self, chain: _Chain, context: Tensor, before: Mapping[tuple, Tensor]) -> None:
        """Fills in what is missing of the chain's results on the context, one link after another."""
        key, x = (), context
        for edit, f in chain.links:
            if edit.strength.is_zero(chain.part, chain.block):
                continue
            key = (*key, (id(f), *edit.strength.key(chain.part, chain.block)))
            if key not in self._edited:
                self._edited[key] = before[key] if key in before else self._add_residual(x, edit, f, chain)
            x = self._edited[key]

    def _after_pass(self, unet: nn.Module, inputs: tuple, output: Any) -> None:
        if not torch.is_grad_enabled():
            self._end_pass()

    def _end_pass(self) -> None:
        """No tensor is taken for the context any more, and what does not outlive the pass goes."""
        self._context = None
        if self._seen is None:
            self._edited = {}


class _Chain:
    """The small networks that one projection's input goes through."""

    def __init__(self, projection: Projection, links: list[tuple[ResidualEdit, nn.Module]]) -> None:
        self.attention, self.part, self.block = projection.attention, projection.part, projection.block
        self.in_width, self.module = projection.in_width, projection.module
        self.links = links

    def key(self) -> tuple:
        """Equal for chains with equal results on the same input: the networks in order, each with its strength, zeros left out."""
        return tuple(
            (id(f), *edit.strength.key(self.part, self.block))
            for edit, f in self.links
            if not edit.strength.is_zero(self.part, self.block)
        )


def _shared(chains: Sequence[_Chain]) -> list[_Chain]:
    """The cross-attention chains with a network that stands in more than one of them."""
    cross = [chain for chain in chains if chain.attention == "attn2"]
    uses: dict[int, int] = {}
    for chain in cross:
        for _, f in chain.links:
            uses[id(f)] = uses.get(id(f), 0) + 1
    return [chain for chain in cross if any(uses[id(f)] > 1 for _, f in chain.links)]


def _context_of(inputs: tuple, named: Mapping[str, Any]) -> Tensor | None:
    """The context among a UNet's arguments: third in all hosts, `encoder_hidden_states` in diffusers, `context` in A1111 and Forge."""
    context = named.get("encoder_hidden_states", named.get("context", inputs[2] if len(inputs) > 2 else None))
    return context if isinstance(context, Tensor) else None


def _add_low_rank(projection: Projection, edit: LowRankEdit):
    def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        if edit.strength.is_zero(projection.part, projection.block):
            return None
        down, up = edit.weights[projection.name]
        x = inputs[0].to(down.dtype)
        delta = (x @ down.mT) @ up.mT  # [rows, tokens, out]
        return _add(output, delta, edit.strength.at(projection.part, projection.block, delta))

    return hook


def _add(x: Tensor, change: Tensor, strength: float | Tensor, in_place: bool = True) -> Tensor:
    """x + strength * change, in x's dtype. Where no gradient is recorded, `change` is overwritten: a large tensor costs less than a new one."""
    if not in_place or torch.is_grad_enabled() or torch.promote_types(x.dtype, change.dtype) != change.dtype:
        return (x + strength * change).to(x.dtype)
    if isinstance(strength, Tensor) or strength != 1:
        change.mul_(strength)
    return change.add_(x).to(x.dtype)
