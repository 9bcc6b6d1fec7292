"""UNets of Stable Diffusion's sizes with random weights, and a host around one. Nothing is downloaded: what a step costs does not depend on
what the weights are."""
from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from hypernetworks.attention import Projection, find_projections
from hypernetworks.host import Conditioning, Folders, ModelFacts
from hypernetworks.hosts.diffusers import DiffusersHost, _Model

TOKENS = 77
LATENT_FACTOR = 8  # pixels per latent cell
SD15 = dict(
    block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8,
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
)  # fmt: skip
SDXL = dict(
    block_out_channels=(320, 640, 1280), cross_attention_dim=2048, attention_head_dim=(5, 10, 20), transformer_layers_per_block=(1, 2, 10),
    down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
    use_linear_projection=True,
)  # fmt: skip


SMALL = {"SD1.5": dict(block_out_channels=(96, 192, 384, 384)), "SDXL": dict(block_out_channels=(64, 128, 256), cross_attention_dim=512)}


def configuration(name: str, small: bool) -> dict[str, Any]:
    """Of a UNet, "SD1.5" or "SDXL"; `small`: narrower, with a tenth of the weights or less."""
    return {"SD1.5": SD15, "SDXL": SDXL}[name] | (SMALL[name] if small else {})


def sd15_unet(small: bool = False, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """Stable Diffusion 1.5's UNet, 860 million weights; `small`: a tenth of them."""
    return _frozen(UNet2DConditionModel(**configuration("SD1.5", small)), dtype)


def _frozen(unet: UNet2DConditionModel, dtype: torch.dtype) -> UNet2DConditionModel:
    return nn.Module.to(unet, dtype).eval().requires_grad_(False)  # diffusers' own `to` warns of layers that this UNet has none of


def twin(unet: nn.Module) -> nn.Module:
    """The same UNet with hooks, modes and gradients of its own; the weights are shared."""
    return copy.deepcopy(unet, {id(weight): nn.Parameter(weight.detach(), requires_grad=False) for weight in unet.parameters()})


def random_context(rows: int, unet: nn.Module, seed: int = 0) -> Tensor:
    """What stands for encoded prompts: [rows, 77, width] of unit variance, in the UNet's dtype."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, TOKENS, unet.config.cross_attention_dim, generator=generator).to(unet.dtype)


class AttentionLayers(nn.Module):
    """The attention layers of a UNet by their names, widths and tokens, and nothing else: a pass calls what the hooks are on, with random
    inputs, and computes nothing itself. What a hook does cannot tell the difference.

    `every`: of layers that are alike only one in so many is there.
    """

    def __init__(self, about: Mapping[str, Any], cells: int, every: int = 1) -> None:
        """`about`: the UNet's configuration; `cells`: the latent's side."""
        super().__init__()
        with torch.device("meta"):
            whole = UNet2DConditionModel(**about)
        self.config, self.dtype = whole.config, torch.float32
        layers: dict[str, list[Projection]] = defaultdict(list)
        for projection in find_projections(whole):
            layers[projection.layer].append(projection)
        alike: dict[tuple, int] = defaultdict(int)
        for name, projections in layers.items():
            width, tokens = projections[0].in_width, (cells >> _level(name, len(about["block_out_channels"]))) ** 2
            alike[width, tokens, name[-1]] += 1
            if alike[width, tokens, name[-1]] % every == 0:
                self._add(projections, width, tokens)
        self._calls: list[tuple[nn.Module, Tensor | None]] = []
        self._rows = 0

    def _add(self, projections: Sequence[Projection], width: int, tokens: int) -> None:
        for projection in projections:
            *path, last = projection.name.split(".")
            parent = self
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent._modules[part]
            reads_context = projection.attention == "attn2" and projection.part in "kv"
            parent.add_module(last, _Call(projection.in_width, projection.out_width, None if reads_context else tokens))

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> None:
        """One pass for [rows, ...] and a context [rows, 77, width]."""
        if self._rows != len(sample):
            self._rows, inputs = len(sample), {}
            calls = [module for module in self.modules() if isinstance(module, _Call)]
            for call in calls:
                inputs.setdefault((call.tokens, call.in_features), call.tokens and torch.randn(self._rows, call.tokens, call.in_features))
            self._calls = [(call, inputs[call.tokens, call.in_features]) for call in calls]
        for call, x in self._calls:
            call(encoder_hidden_states if x is None else x)


class _Call(nn.Module):
    """Stands for a projection: zeros come out, whatever goes in. `tokens` None: it reads the context."""

    def __init__(self, inputs: int, outputs: int, tokens: int | None) -> None:
        super().__init__()
        self.in_features, self.out_features, self.tokens = inputs, outputs, tokens

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(1).expand(*x.shape[:-1], self.out_features)


def _level(layer: str, levels: int) -> int:
    """How many times the latent is halved before a layer."""
    side, number, *_ = layer.split(".")
    return {"down_blocks": lambda: int(number), "up_blocks": lambda: levels - 1 - int(number)}.get(side, lambda: levels - 1)()


class RandomHost(DiffusersHost):
    """The standalone host around a given UNet; instead of encoding pictures and prompts it draws random numbers."""

    def __init__(self, unet: nn.Module, folder: Path) -> None:
        super().__init__(folders=Folders.below(folder), device="cpu", dtype=unet.dtype)
        scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
        facts = ModelFacts("random", "0" * 10, "sd1", "epsilon", resolution=512, latent_factor=LATENT_FACTOR)
        self._model = _Model(unet, scheduler, facts)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        return Conditioning(random_context(len(prompts), self.unet))

    def encode_pictures(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        rows, _, height, width = pixels.shape
        mean = torch.randn(rows, 4, height // LATENT_FACTOR, width // LATENT_FACTOR, generator=torch.Generator().manual_seed(0))
        return mean, torch.full_like(mean, -10.0)

    def release_encoders(self) -> None:
        """There are none."""
