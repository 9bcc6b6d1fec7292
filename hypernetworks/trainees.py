"""What can be trained, each behind the same few methods, so that there is one training loop: a residual hypernetwork, a generating one,
and low-rank weights (an ordinary LoRA)."""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .attention import Edit, LowRankEdit, ResidualEdit, Strength
from .batches import Batch, Batches
from .config import TrainingConfig
from .contrast import taught_parameters, teach
from .dataset import Dataset
from .errors import ConfigError
from .files import load, save
from .generator import Hypernetwork, HypernetworkStructure
from .generator_files import describe_generator, load_generator, save_generator
from .group_batches import GroupBatches
from .groups import group_names, read_groups
from .host import Host
from .lora import export_lora
from .low_rank import LowRankWeights
from .networks import new_network, outline
from .optimizers import AUTO_RATE, parameter_groups
from .repeats import read_pictures
from .residual import ResidualHypernetwork

DTYPES = {"float32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Network = ResidualHypernetwork | Hypernetwork | LowRankWeights


class Trainee:
    """One network in training. After `begin` there are the `network`, and the `edit` that puts it at work on the host's UNet."""

    network: nn.Module
    edit: Edit
    penalty = 0.0  # what the penalty of `acting` counts beside the loss

    def __init__(self, network: Network | None, config: TrainingConfig, host: Host) -> None:
        self.network, self.config, self.host = network, config, host

    @property
    def target(self) -> Path:
        """The file that is written at the end."""
        return self.host.folders.networks / f"{self.config.name}.safetensors"

    def read(self, folder: str | Path) -> Dataset:
        """The pictures of a folder."""
        return self._read(read_pictures, folder)

    def batches(self, dataset: Dataset, processes: int, process: int, path: Path | None = None) -> Batches:
        """What the UNet is shown; `path` is the file that `begin` will be given."""
        return Batches(self.host, self.config, dataset, processes, process)

    def begin(self, path: Path | None) -> None:
        """Makes what is missing of network and edit; the network is read from a file where a `path` is given."""
        raise NotImplementedError

    def learn_beforehand(self, batches: Batches) -> Iterator[tuple[int, int, str]]:
        """What a new network learns before the first step; yields (done, total, what)."""
        yield from ()

    def groups(self, auto: bool) -> list[dict[str, Any]]:
        """Parameter groups, each with the `rate_scale` that the schedule's rate is multiplied by."""
        raise NotImplementedError

    def outline(self) -> dict[str, Any]:
        """What another network must share to take this one's weights."""
        raise NotImplementedError

    @contextmanager
    def acting(self, batch: Batch) -> Iterator[list[Tensor]]:
        """Within it the network acts on the batch's samples. The list is filled with terms whose mean is the penalty."""
        yield []

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Within it the model is as it would be without the network."""
        before, self.edit.strength = self.edit.strength, Strength(0.0)
        try:
            yield
        finally:
            self.edit.strength = before

    @contextmanager
    def drawing(self, batches: Batches, number: int) -> Iterator[None]:
        """Within it preview `number` (from 0) looks as the finished file will make it, if `before_step` is called at each step."""
        yield

    def before_step(self) -> None:
        """Sets what changes from one evaluation of the UNet to the next while a preview is drawn."""

    def save(self, path: Path) -> list[Path]:
        """Writes the network; gives the files."""
        raise NotImplementedError

    def _read(self, read: Any, folder: str | Path) -> Dataset:
        resolution = self.config.resolution or self.host.model.resolution
        cache = self.host.folders.data / "latents"
        return read(folder, resolution=resolution, shared_caption=self.config.shared_caption, cache=cache)


class ResidualTrainee(Trainee):
    """A residual hypernetwork. The penalty is the mean of |f(x)|² / |x|² over all places where a network acts."""

    def __init__(self, network: ResidualHypernetwork | None, config: TrainingConfig, host: Host) -> None:
        super().__init__(network, config, host)
        self.penalty = config.residual_penalty
        self._check_pt(config.per_layer if network is None else network.per_layer)

    def begin(self, path: Path | None) -> None:
        if self.network is None:
            self.network = load(path) if path else new_network(self.host.unet, self.config)
        self._check_pt(self.network.per_layer)  # a file that is gone on from may be of the other kind
        self.edit = ResidualEdit(self.network)

    def groups(self, auto: bool) -> list[dict[str, Any]]:
        return parameter_groups(self.network, auto)

    def outline(self) -> dict[str, Any]:
        return outline(self.network)

    @contextmanager
    def acting(self, batch: Batch) -> Iterator[list[Tensor]]:
        ratios: list[Tensor] = []
        if self.penalty > 0:
            self.edit.observe = lambda x, residual: ratios.append(residual.float().pow(2).mean() / x.float().pow(2).mean().clamp_min(1e-12))
        try:
            yield ratios
        finally:
            self.edit.observe = None

    @contextmanager
    def drawing(self, batches: Batches, number: int) -> Iterator[None]:
        try:
            yield
        finally:
            self.edit.strength = Strength()

    def before_step(self) -> None:
        """The negative side of a preview is changed only if it was trained to be."""
        self.edit.strength = Strength(1.0 if self.config.caption_dropout else [float(not row.uncond) for row in self.host.rows])

    def save(self, path: Path) -> list[Path]:
        written = [path, path.with_suffix(".pt")] if self.config.also_pt and path == self.target else [path]
        return [save(self.network, file, overwrite=True, dtype=DTYPES[self.config.file_precision]) for file in written]

    def _check_pt(self, per_layer: bool) -> None:
        if self.config.also_pt and per_layer:
            raise ConfigError(
                "A .pt file cannot hold one pair of networks per layer: turn off Also write .pt (also_pt), or One pair per layer (per_layer)."
            )


class GeneratorTrainee(Trainee):
    """A generating hypernetwork: every sample gets the weights for its own condition. The penalty is mean A² + mean B² over all projections."""

    def __init__(self, network: Hypernetwork | None, config: TrainingConfig, host: Host) -> None:
        super().__init__(network, config, host)
        self.penalty = config.weight_penalty
        self.tasks: tuple[str, ...] = ()
        self.teaches = False  # whether the encoder learns from the pictures beforehand
        if config.also_pt:
            raise ConfigError("A .pt file cannot hold a generator: turn off Also write .pt (also_pt).")
        if config.layer_filter:
            raise ConfigError("Only these layers (layer_filter) is for residual networks; a generator has Layers and Blocks.")
        if config.regularization:
            raise ConfigError("A generator takes no regularisation pictures (regularization): they belong to none of its groups.")

    def read(self, folder: str | Path) -> Dataset:
        """The pictures of a folder of folders."""
        return self._read(read_groups, folder)

    def batches(self, dataset: Dataset, processes: int, process: int, path: Path | None = None) -> Batches:
        known = self.network.structure if self.network is not None else describe_generator(path).structure if path is not None else None
        about, groups = known or self.config, group_names(dataset.pictures)
        if "task" in about.conditions:
            self.tasks = groups if known is None else known.tasks
            if unknown := sorted(set(groups) - set(self.tasks)):
                raise ConfigError(f"This generator knows no task {unknown[0]!r}; it knows {', '.join(self.tasks)}.")
        self.teaches = "image" in about.conditions and len(groups) > 1 and self.config.encoder_steps > 0
        return GroupBatches(self.host, self.config, dataset, about.conditions, self.tasks, processes, process)

    def begin(self, path: Path | None) -> None:
        if self.network is None:
            self.network = load_generator(path) if path else Hypernetwork(seed=self.config.seed, **self._structure())
        self.network.bind(self.host.unet)
        self.edit = LowRankEdit({layer.name: _no_delta(layer.in_width, layer.out_width) for layer in self.network.layers})

    def learn_beforehand(self, batches: GroupBatches) -> Iterator[tuple[int, int, str]]:
        """The encoder learns to tell groups apart (contrast.py), where there are pictures to tell them by."""
        steps = self.config.encoder_steps
        if self.teaches and len(batches.training_references.groups) > 1:
            for done, _ in enumerate(teach(self.network.encoder, batches.pairs, steps), start=1):
                yield done, steps, "Teaching the encoder"

    def groups(self, auto: bool) -> list[dict[str, Any]]:
        """The automatic rate falls with the width, as that of residual networks does. What the encoder was taught about pictures is a group with its
        own share of it: the denoising loss is mostly noise, and the steps that Adam takes by noise would soon undo it."""
        rate_scale = AUTO_RATE / self.network.structure.embedding_dim if auto else 1.0
        taught = taught_parameters(self.network.encoder) if self.teaches else []
        learning = [parameter for parameter in self.network.parameters() if not any(parameter is one for one in taught)]
        shares = [(learning, 1.0), (taught, self.config.encoder_rate)]
        return [{"params": parameters, "rate_scale": rate_scale * share} for parameters, share in shares if parameters]

    def outline(self) -> dict[str, Any]:
        return {"structure": json.dumps(dataclasses.asdict(self.network.structure)), "layers": json.dumps(self.network.layers)}

    @contextmanager
    def acting(self, batch: Batch) -> Iterator[list[Tensor]]:
        self.edit.weights = self.network(batch.condition)
        yield [down.float().pow(2).mean() + up.float().pow(2).mean() for down, up in self.edit.weights.values()] if self.penalty else []

    @contextmanager
    def drawing(self, batches: GroupBatches, number: int) -> Iterator[None]:
        """One of the batches' conditions for each preview in turn; the weights act on all rows, as an exported LoRA does."""
        conditions = batches.preview_conditions()
        self.edit.weights = self.network(conditions[number % len(conditions)])
        yield

    def save(self, path: Path) -> list[Path]:
        return [save_generator(self.network, path, overwrite=True, dtype=DTYPES[self.config.file_precision])]

    def _structure(self) -> dict[str, Any]:
        shared = {field.name for field in dataclasses.fields(HypernetworkStructure)} & {field.name for field in dataclasses.fields(self.config)}
        return {name: getattr(self.config, name) for name in shared} | ({"tasks": self.tasks} if self.tasks else {})


class LowRankTrainee(Trainee):
    """Low-rank weights, written as an ordinary LoRA file."""

    @property
    def target(self) -> Path:
        """The file's name without its content's hash."""
        return self.host.folders.loras / f"{self.config.name}.safetensors"

    def begin(self, path: Path | None) -> None:
        self.edit = LowRankEdit(self.network.weights())

    def groups(self, auto: bool) -> list[dict[str, Any]]:
        widest = max(down.shape[-1] for down in self.network.down)
        return [{"params": list(self.network.parameters()), "rate_scale": AUTO_RATE / widest if auto else 1.0}]

    def outline(self) -> dict[str, Any]:
        return {name: json.dumps([list(down.shape), list(up.shape)]) for name, (down, up) in self.network.weights().items()}

    def save(self, path: Path) -> list[Path]:
        """A LoRA file, its content's hash in its name."""
        about = {key: text for key, text in self.network.metadata.items() if key != "preview"}
        return [export_lora(self.network.weights(), path, self.host.model.family, metadata=about)]


def trainee_for(network: Network | None, config: TrainingConfig, host: Host) -> Trainee:
    """What trains this network, or a new one of the kind that the configuration asks for."""
    if network is None:
        return (GeneratorTrainee if config.kind == "generator" else ResidualTrainee)(None, config, host)
    return TRAINEES[type(network)](network, config, host)


def check_trainable(network: Any) -> None:
    """Raises `ConfigError` for what is no network that can be trained."""
    if type(network) not in TRAINEES:
        raise ConfigError(f"The trainer trains hypernetworks and low-rank weights; a {type(network).__name__} is none of these.")


TRAINEES: dict[type, type[Trainee]] = {
    ResidualHypernetwork: ResidualTrainee, Hypernetwork: GeneratorTrainee, LowRankWeights: LowRankTrainee,
}


def _no_delta(in_width: int, out_width: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(1, 1, in_width), torch.zeros(1, out_width, 1)
