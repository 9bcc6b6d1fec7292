"""The yardstick: a LoRA on all attention projections, trained on the same batches with the same loss as a hypernetwork."""
from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from hypernetworks.attention import LowRankEdit, attached, find_projections
from hypernetworks.batches import Batches
from hypernetworks.config import TrainingConfig
from hypernetworks.dataset import read_folder
from hypernetworks.files import write_atomically
from hypernetworks.host import Host
from hypernetworks.losses import add_noise, denoising_loss, denoising_target, min_snr_weights
from hypernetworks.optimizers import make_optimizer
from hypernetworks.schedule import LearningRate


class LowRank(nn.Module):
    """Trainable low-rank deltas y + (x A^T) B^T for every attention projection; A is N(0, 1 / in), B zero (Hu et al. 2021)."""

    def __init__(self, unet: nn.Module, rank: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.names, self.down, self.up = [], nn.ParameterList(), nn.ParameterList()
        for projection in find_projections(unet):
            down = torch.randn(1, rank, projection.in_width, generator=generator) / math.sqrt(projection.in_width)
            self.names.append(projection.name)
            self.down.append(nn.Parameter(down))
            self.up.append(nn.Parameter(torch.zeros(1, projection.out_width, rank)))

    def edit(self) -> LowRankEdit:
        """The deltas as an edit of the UNet they were made for."""
        return LowRankEdit({name: (down, up) for name, down, up in zip(self.names, self.down, self.up, strict=True)})


def train_low_rank(folder: Path, host: Host, config: TrainingConfig, rank: int) -> LowRank:
    """A LoRA trained on a folder of pictures with the options of `config` that concern batches, loss and optimizer."""
    batches = Batches(host, config, read_folder(folder))
    for _ in batches.prepare():
        pass
    network = LowRank(host.unet, rank, config.seed)
    rates = LearningRate.parse(config.learning_rate, config.rate_schedule, config.warmup_steps)
    optimizer = make_optimizer(config.optimizer, config.optimizer_arguments, [{"params": list(network.parameters())}])
    with host.training(), attached(host.unet, [network.edit()]):
        for step in tqdm(range(1, config.max_steps + 1), desc=f"LoRA, {folder.name}"):
            for group in optimizer.param_groups:
                group["lr"] = rates.at(step, config.max_steps)
            optimizer.zero_grad()
            _loss(batches, step, host, config).backward()
            nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm or math.inf)
            optimizer.step()
    return network.requires_grad_(False)


def save_low_rank(network: LowRank, path: Path) -> None:
    """Writes the weights, the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: save_file(network.state_dict(), temporary))


def load_low_rank(unet: nn.Module, rank: int, path: Path) -> LowRank:
    """A LoRA of the same rank for the same kind of UNet, as `save_low_rank` wrote it."""
    network = LowRank(unet, rank)
    network.load_state_dict(load_file(path))
    return network.requires_grad_(False)


def _loss(batches: Batches, step: int, host: Host, config: TrainingConfig) -> Tensor:
    batch, kind = batches.at(step, 0), host.model.prediction_type
    alphas = host.alphas_cumprod[batch.timesteps]
    predicted = host.predict(add_noise(batch.latents, batch.noise, alphas), batch.timesteps, batch.conditioning, batch.sizes)
    target = denoising_target(batch.latents, batch.noise, alphas, kind)
    return denoising_loss(predicted, target, min_snr_weights(alphas, config.min_snr_gamma, kind), config.loss)
