"""An average of a network's weights over the steps, which is less noisy than the weights of any one step."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The exponential moving average of a network's weights: average = d average + (1 - d) weights after each step, from the weights at the
    start on. d grows with the steps, min(decay, (1 + step) / (10 + step)), so that a short run's average is not that of its beginning."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay = network, decay
        self.begin()

    def begin(self) -> None:
        """The average is of the network's weights as they are."""
        self.weights = {name: parameter.detach().clone() for name, parameter in self.network.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after step number `step` (from 1)."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.network.named_parameters():
            self.weights[name].lerp_(parameter, share)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Takes over an average that was kept."""
        for name, value in weights.items():
            self.weights[name].copy_(value)

    @torch.no_grad()
    def settle(self) -> None:
        """The average becomes the network's weights."""
        for name, parameter in self.network.named_parameters():
            parameter.copy_(self.weights[name])

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within it the network has the average for its weights."""
        kept = {name: parameter.detach().clone() for name, parameter in self.network.named_parameters()}
        self.settle()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.network.named_parameters():
                    parameter.copy_(kept[name])
