"""Low-rank deltas as weights that are trained themselves: an ordinary LoRA (Hu et al. 2021), from zero or from generated weights."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .attention import find_projections
from .errors import ConfigError
from .lora import Weights


class LowRankWeights(nn.Module):
    """Per projection the factors A [1, r, in] and B [1, out, r]; the delta is B @ A.

    `metadata` holds what else its file says, as text; `step` counts the training steps.
    """

    name: str = ""
    description: str = ""
    step: int = 0

    def __init__(self, weights: Weights) -> None:
        """Copies, float32 on the CPU. Raises `ConfigError` for weights of several conditions."""
        super().__init__()
        self.metadata: dict[str, str] = {}
        self.names = tuple(weights)
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        # Forge generates under inference_mode, and weights made in it could never be trained
        with torch.inference_mode(False):
            for down, up in weights.values():
                if len(down) != 1 or len(up) != 1:
                    raise ConfigError(f"Weights of one condition can be trained on, and these are of {max(len(down), len(up))}.")
                self.down.append(nn.Parameter(down.detach().float().cpu().clone()))
                self.up.append(nn.Parameter(up.detach().float().cpu().clone()))

    @classmethod
    def new(
        cls, unet: nn.Module, rank: int = 4, target_layers: Sequence[str] = ("attn1", "attn2"), seed: int = 0
    ) -> LowRankWeights:
        """Untrained ones for a UNet: A is drawn from Normal(0, 1 / in), B is zero. Raises `ModelUnfit` where it has no such layers."""
        generator = torch.Generator().manual_seed(seed)
        return cls(
            {
                p.name: (torch.randn(1, rank, p.in_width, generator=generator) / p.in_width**0.5, torch.zeros(1, p.out_width, rank))
                for p in find_projections(unet)
                if p.attention in target_layers
            }
        )

    def weights(self) -> dict[str, tuple[Tensor, Tensor]]:
        """As `attention.LowRankEdit` and `lora.export_lora` take them."""
        return dict(zip(self.names, zip(self.down, self.up, strict=True), strict=True))
