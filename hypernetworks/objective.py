"""The loss of a prediction, as a run's options ask for it."""
from __future__ import annotations

import torch
from torch import Tensor

from .batches import Batch
from .config import TrainingConfig
from .errors import AccessRefused
from .host import Host
from .losses import add_noise, denoising_loss, denoising_target, huber_deltas, own_loss, timestep_weights
from .masks import balanced
from .noise import noise_schedule, timestep_shape


class Objective:
    """What a run minimises. Raises `ConfigError` for options that contradict each other or the model, and `AccessRefused` for a user's own
    function where those who use the page or the API may not name places of this machine."""

    def __init__(self, config: TrainingConfig, host: Host) -> None:
        self.config, self.kind = config, host.model.prediction_type
        self.alphas_cumprod = noise_schedule(host.alphas_cumprod, config, self.kind).to(host.device)
        timestep_shape(config)  # before anything is encoded
        if config.loss_function and not host.client_paths:
            raise AccessRefused("Own loss (loss_function) runs code of this machine, which a page that others can reach may not ask for.")
        self.errors = own_loss(config.loss_function) if config.loss_function else config.loss

    @property
    def warnings(self) -> list[str]:
        """Sentences about options that are of no use together."""
        if self.config.zero_terminal_snr and self.config.loss_weighting == "min_snr" and self.config.min_snr_gamma:
            return [
                "Min-SNR weighs the last timestep by 0, the one that zero terminal SNR adds: choose the weighting none (loss_weighting) to train it."
            ]
        return []

    def noisy(self, batch: Batch) -> Tensor:
        """What the UNet is shown [b, c, h, w]."""
        noise = batch.noise if batch.perturbation is None else batch.noise + batch.perturbation
        return add_noise(batch.latents, noise, self.alphas_cumprod[batch.timesteps])

    def keeps(self, batch: Batch) -> bool:
        """Whether the loss needs what the model itself predicts, without the network."""
        outside = self.config.masked_prior_weight > 0 and batch.area is not None
        return outside or (self.config.regularization_target == "model" and any(batch.keeping))

    def loss(self, predicted: Tensor, batch: Batch, kept: Tensor | None = None) -> Tensor:
        """One number for the UNet's output [b, c, h, w]; `kept` is what the model itself predicts, where `keeps` says so."""
        config, alphas = self.config, self.alphas_cumprod[batch.timesteps]
        target = denoising_target(batch.latents, batch.noise, alphas, self.kind)
        if batch.regular is not None and config.regularization_target == "model" and kept is not None:
            target = torch.where(batch.regular.view(-1, 1, 1, 1), kept.float(), target)
        weights = timestep_weights(alphas, config.loss_weighting, config.min_snr_gamma, self.kind)
        if batch.weights is not None:
            weights = weights * batch.weights
        deltas = huber_deltas(alphas, batch.timesteps, len(self.alphas_cumprod), config.huber_delta, config.huber_schedule)
        area = balanced(batch.area) if config.normalize_masks and batch.area is not None else batch.area
        loss = denoising_loss(predicted, target, weights, self.errors, deltas, area)
        if config.masked_prior_weight and batch.area is not None:
            outside = denoising_loss(predicted, kept, weights, self.errors, deltas, 1 - batch.area)
            loss = loss + config.masked_prior_weight * outside
        return loss
