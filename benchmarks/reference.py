"""The *reference*: what a step costs in AUTOMATIC1111's web UI, by the same networks and the same attention function as ours.

Facts from its source (c8a5322d): each layer evaluates its pair anew, for keys and for values (sd_hijack_optimizations.py:186 and the like,
hypernetwork.py:357-389), as x + f(x) * m (hypernetwork.py:117); m is 1 in training. Training leaves every parameter of the UNet trainable and
empties the gradients of the hypernetwork alone (hypernetwork.py:524-530, 721), checkpoints every transformer block and every residual
block with reentrant checkpoints (sd_hijack_checkpoint.py), keeps float32 networks and reads the loss at every step (hypernetwork.py:704).
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hypernetworks.attention import Projection, find_projections
from hypernetworks.residual import ResidualHypernetwork

CHECKPOINTED = ("BasicTransformerBlock", "ResnetBlock2D")


@contextmanager
def in_every_layer(unet: nn.Module, networks: Sequence[ResidualHypernetwork], strength: float = 1.0) -> Iterator[None]:
    """Within it each projection of keys or values evaluates its networks on what it reads."""
    handles = [
        projection.module.register_forward_pre_hook(_evaluate([f for network in networks if (f := network_of(network, projection))], strength))
        for projection in find_projections(unet)
        if projection.part in ("k", "v") and any(projection.in_width in network for network in networks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def network_of(network: ResidualHypernetwork, projection: Projection) -> nn.Module | None:
    """f for a projection, found by the width of what it reads."""
    return network.pair(projection.in_width)["kv".index(projection.part)] if projection.in_width in network else None


def _evaluate(chain: Sequence[nn.Module], strength: float) -> Callable[[nn.Module, tuple], tuple]:
    def hook(module: nn.Module, inputs: tuple) -> tuple:
        x = inputs[0]
        for f in chain:
            full = x.float()
            x = (full + f(full) * strength).to(x.dtype)
        return (x, *inputs[1:])

    return hook


def checkpoint_blocks(unet: nn.Module) -> None:
    """Every block keeps its inputs only and is computed again in backward, by reentrant checkpoints."""
    for block in unet.modules():
        if type(block).__name__ in CHECKPOINTED:
            block.forward = functools.partial(_checkpointed, block.forward)


def _checkpointed(forward: Callable[..., Tensor], *inputs: Any, **named: Any) -> Tensor:
    return checkpoint(lambda *tensors: forward(*tensors, **named), *inputs, use_reentrant=True)


class ReferenceTraining:
    """Training as the reference does it, on fixed latents [b, c, h, w] and context [b, tokens, width]. The UNet is its own to change."""

    def __init__(self, unet: nn.Module, network: ResidualHypernetwork, latents: Tensor, context: Tensor, alphas_cumprod: Tensor) -> None:
        self.unet, self.latents, self.context, self.alphas_cumprod = unet, latents, context, alphas_cumprod
        self.network = network.requires_grad_(True).train()
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)
        unet.requires_grad_(True)
        checkpoint_blocks(unet)

    def step(self) -> float:
        """One update; gives the loss."""
        timesteps = torch.randint(0, len(self.alphas_cumprod), (len(self.latents),))
        noise = torch.randn_like(self.latents)
        a = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy = a.sqrt() * self.latents + (1 - a).sqrt() * noise
        with in_every_layer(self.unet, [self.network]), _autocast(self.unet.dtype):
            predicted = self.unet(noisy.to(self.unet.dtype), timesteps, encoder_hidden_states=self.context).sample
            loss = F.mse_loss(predicted.float(), noise)
            value = loss.item()
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return value


def _autocast(dtype: torch.dtype) -> torch.autocast:
    """Float32 networks beside a UNet in half precision; nothing where that is float32 too (modules/devices.py:205-216)."""
    return torch.autocast("cpu", dtype if dtype != torch.float32 else torch.bfloat16, enabled=dtype != torch.float32)
