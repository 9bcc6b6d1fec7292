"""What a training step costs: the trainer, the trainer with gradient checkpointing, A1111's way (reference.py), and the floor.

    python benchmarks/training_step.py [--small] [--json FILE] [--out FOLDER]

A UNet of Stable Diffusion 1.5's size with random weights (`--small`: a tenth of it, at 64 px) at 256 px, networks 1-2-1 with swish, once on the
context only and once on all widths, as A1111's default is. The contenders take turns; a figure is a ratio of medians. *Floor*: one forward
pass of the frozen UNet with the frozen networks evaluated once where they act, and one backward pass to the networks' inputs; no
gradients of the networks' weights, no optimizer, no reading of pictures. Peak memory is that of a process of its own for each contender,
after a step that warms up; what lies above the loaded model counts from before the networks are made.

About 10 minutes on 2 CPU cores; finished parts are kept in the output folder, so that an interrupted run goes on where it stopped.
"""
from __future__ import annotations

import contextlib
import json
import tempfile
from argparse import SUPPRESS
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from measuring import has_bf16, in_own_process, machine, medians, peak, reset_peak, resident, seconds
from PIL import Image
from random_models import LATENT_FACTOR, RandomHost, random_context, sd15_unet, twin
from reference import ReferenceTraining, network_of
from report import arguments, kept, table, write_figures
from torch import nn
from torch.nn import functional as F

from hypernetworks.attention import find_projections, network_widths
from hypernetworks.config import TrainingConfig, read
from hypernetworks.residual import ResidualHypernetwork, ResidualStructure
from hypernetworks.trainer import HypernetworkTrainer

CONTEXT, DEFAULT = "context", "default"
LAYERS = {CONTEXT: ("attn2",), DEFAULT: ("attn1", "attn2")}
REFERENCE, OURS, CHECKPOINTED, FLOOR = "reference", "ours", "ours with checkpointing", "floor"
STRUCTURE = ResidualStructure((1, 2, 1), "swish")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MEASURED_STEPS = 2  # in memory's own processes


@dataclass(frozen=True)
class Setting:
    """One row of contenders."""

    networks: str = DEFAULT
    batch: int = 1
    precision: str = "fp32"
    small: bool = False

    @property
    def side(self) -> int:
        """Of the pictures, in pixels."""
        return 64 if self.small else 256

    @property
    def name(self) -> str:
        return f"{self.networks}, batch {self.batch}, {self.precision}"


Step = Callable[[], object]


@contextlib.contextmanager
def contender(kind: str, setting: Setting, unet: nn.Module) -> Iterator[Step]:
    """One contender on a UNet of its own: what is yielded takes one step."""
    torch.manual_seed(0)
    if kind in (OURS, CHECKPOINTED):
        with tempfile.TemporaryDirectory() as folder, contextlib.closing(_training(unet, setting, kind == CHECKPOINTED, Path(folder))) as events:
            yield lambda: _next_step(events)
        return
    network = ResidualHypernetwork(network_widths(unet, LAYERS[setting.networks]), STRUCTURE, "Normal")
    latents = torch.randn(setting.batch, 4, setting.side // LATENT_FACTOR, setting.side // LATENT_FACTOR)
    context = random_context(setting.batch, unet)
    if kind == FLOOR:
        yield Floor(unet, network, latents, context).step
    else:
        alphas_cumprod = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
        yield ReferenceTraining(unet, network, latents, context, alphas_cumprod).step


def _training(unet: nn.Module, setting: Setting, checkpointing: bool, folder: Path) -> Iterator:
    """The trainer as everybody runs it, with a loss table and all."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(setting.batch):
        Image.effect_noise((setting.side, setting.side), 20 + number).convert("RGB").save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"picture {number}", encoding="utf-8")
    config = read(TrainingConfig, {
        "name": "measured", "per_layer": False, "target_layers": LAYERS[setting.networks], "layer_structure": STRUCTURE.layer_structure,
        "activation": STRUCTURE.activation, "weight_initialization": "Normal", "resolution": setting.side, "batch_size": setting.batch,
        "max_steps": 10_000, "learning_rate": "1e-5", "validation_share": 0.0, "validation_every": 0, "preview_every": 0, "checkpoint_every": 0,
        "gradient_checkpointing": checkpointing, "mixed_precision": "no" if setting.precision == "fp32" else setting.precision,
    })  # fmt: skip
    return HypernetworkTrainer(config=config).run(pictures, RandomHost(unet, folder))


def _next_step(events: Iterator) -> None:
    while next(events).kind != "step":
        pass


class Floor:
    """The least that a step can cost: one forward and one backward pass of the frozen UNet, the frozen networks evaluated once."""

    def __init__(self, unet: nn.Module, network: ResidualHypernetwork, latents: torch.Tensor, context: torch.Tensor) -> None:
        self.unet, self.latents, self.context = unet, latents, context.requires_grad_()
        self.network = network.requires_grad_(False).eval().to(unet.dtype)
        self.edited: dict[int, torch.Tensor] = {}
        for projection in find_projections(unet):
            if projection.part in ("k", "v") and (f := network_of(network, projection)) is not None:
                projection.module.register_forward_pre_hook(self._on_context(f) if projection.attention == "attn2" else _on_picture(f))

    def step(self) -> None:
        """One forward and one backward pass."""
        self.edited = {}
        noise = torch.randn_like(self.latents)
        timesteps = torch.randint(0, 1000, (len(noise),))
        predicted = self.unet(self.latents.to(self.unet.dtype), timesteps, encoder_hidden_states=self.context).sample
        F.mse_loss(predicted.float(), noise).backward()
        self.context.grad = None

    def _on_context(self, f: nn.Module) -> Callable[[nn.Module, tuple], tuple]:
        def hook(module: nn.Module, inputs: tuple) -> tuple:
            if id(f) not in self.edited:
                self.edited[id(f)] = self.context + f(self.context)
            return (self.edited[id(f)],)

        return hook


def _on_picture(f: nn.Module) -> Callable[[nn.Module, tuple], tuple]:
    def hook(module: nn.Module, inputs: tuple) -> tuple:
        x = inputs[0]
        x = x if x.requires_grad else x.requires_grad_()  # in the first edited layer
        return (x + f(x),)

    return hook


def step_times(setting: Setting, kinds: tuple[str, ...]) -> dict[str, float]:
    """Median seconds of a step, the contenders in turns on twins of one UNet."""
    unet = sd15_unet(setting.small, DTYPES[setting.precision])
    with contextlib.ExitStack() as stack:
        steps = {kind: stack.enter_context(contender(kind, setting, twin(unet))) for kind in kinds}
        return medians({kind: lambda step=step: seconds(step) for kind, step in steps.items()})


def peak_memory(setting: Setting, kind: str) -> dict[str, int]:
    """Bytes in a process of its own: with the model loaded, and at most during steps after the first."""
    import accelerate  # noqa: F401  the trainer's; loaded code is no part of what training takes

    unet = sd15_unet(setting.small, DTYPES[setting.precision])
    loaded = resident()
    with contender(kind, setting, unet) as step:
        step()
        reset_peak()
        for _ in range(MEASURED_STEPS):
            step()
        return {"loaded": loaded, "peak": peak()}


def measure_times(settings: list[Setting], out: Path) -> dict[Setting, dict[str, float]]:
    """Step times of each setting; of larger batches the trainer's and the reference's alone."""
    found = {}
    for setting in settings:
        kinds = (REFERENCE, OURS, CHECKPOINTED, FLOOR) if setting.batch == 1 else (REFERENCE, OURS)
        found[setting] = kept(out, f"times {setting.name}", (asdict(setting), machine()), lambda s=setting, k=kinds: step_times(s, k))
        print(f"measured: {setting.name}", flush=True)
    return found


def measure_memory(settings: list[Setting], out: Path) -> dict[Setting, dict[str, dict[str, int]]]:
    """Peak memory of each setting and contender."""

    def measured(setting: Setting, kind: str) -> dict[str, int]:
        return json.loads(in_own_process(__file__, ["--memory-of", json.dumps([asdict(setting), kind])]))

    return {
        setting: {
            kind: kept(out, f"memory {setting.name} {kind}", (asdict(setting), kind), lambda s=setting, k=kind: measured(s, k))
            for kind in (REFERENCE, OURS, CHECKPOINTED)
        }
        for setting in settings
    }


def figures(times: dict[Setting, dict[str, float]], memory: dict[Setting, dict[str, dict[str, int]]]) -> dict[str, float]:
    """The ratios at batch 1 in fp32; where a name has none of the two kinds of networks in it, the larger of both."""
    plain = {setting.networks: (found, memory[setting]) for setting, found in times.items() if setting.batch == 1 and setting.precision == "fp32"}
    found: dict[str, float] = {}
    for networks, (seconds_of, bytes_of) in plain.items():
        extra = {kind: about["peak"] - about["loaded"] for kind, about in bytes_of.items()}
        found |= {
            f"step_vs_reference_{networks}": seconds_of[OURS] / seconds_of[REFERENCE],
            f"step_vs_floor_{networks}": seconds_of[OURS] / seconds_of[FLOOR],
            f"step_vs_reference_checkpointed_{networks}": seconds_of[CHECKPOINTED] / seconds_of[REFERENCE],
            f"memory_vs_reference_{networks}": bytes_of[OURS]["peak"] / bytes_of[REFERENCE]["peak"],
            f"extra_memory_checkpointed_{networks}": extra[CHECKPOINTED] / extra[REFERENCE],
        }
    for name in ("step_vs_floor", "step_vs_reference_checkpointed", "memory_vs_reference", "extra_memory_checkpointed"):
        found[name] = max(found[f"{name}_{networks}"] for networks in plain)
    return found


def rows(times: dict[Setting, dict[str, float]], memory: dict[Setting, dict[str, dict[str, int]]]) -> list[list]:
    """The printed table, a row per setting and contender."""
    lines = []
    for setting, seconds_of in times.items():
        for kind, value in seconds_of.items():
            about, base = memory.get(setting, {}).get(kind), memory.get(setting, {}).get(REFERENCE)
            lines.append([
                setting.name, kind, value, value / seconds_of[REFERENCE], value / seconds_of[FLOOR] if FLOOR in seconds_of else None,
                about and about["peak"] / 1e9, about and about["peak"] / base["peak"], about and (about["peak"] - about["loaded"]) / 1e9,
            ])  # fmt: skip
    return lines


def main() -> None:
    parser = arguments("training_step", __doc__)
    parser.add_argument("--memory-of", help=SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        about, kind = json.loads(options.memory_of)
        print(json.dumps(peak_memory(Setting(**about), kind)))
        return
    precisions = ("fp32", "bf16") if has_bf16() else ("fp32",)
    first = [Setting(networks, 1, precision, options.small) for precision in precisions for networks in LAYERS]
    times = measure_times([*first, Setting(DEFAULT, 4, "fp32", options.small)], options.out)
    memory = measure_memory(first, options.out)
    columns = ("networks", "contender", "seconds", "of the reference", "of the floor", "peak, GB", "of the reference's", "above the model, GB")
    print(f"Stable Diffusion 1.5's UNet{', a tenth of it' if options.small else ''}, {first[0].side} px; {machine()}.")
    if not has_bf16():
        print("This processor has no bf16 instructions, so that bf16 is left out.")
    print(table(columns, rows(times, memory)))
    found = figures(times, memory)
    print(table(("figure", "value"), list(found.items())))
    write_figures(options.json, found, machine=machine(), seconds={s.name: v for s, v in times.items()}, bytes={s.name: v for s, v in memory.items()})


if __name__ == "__main__":
    main()
