"""What a hypernetwork adds to a sampling step, beside what it adds in A1111's web UI (reference.py).

    python benchmarks/generation.py [--small] [--json FILE] [--out FOLDER]

512 px, a row with the prompt and one with the negative prompt. An overhead is the time spent in the hooks, which is measured inside them, as
a per cent of a step would drown in noise; ours includes putting the networks on before each evaluation and taking them off after it, as
happens in web UIs, and is the mean over an image of 20 steps, of which the first has to evaluate what the others can use again. The hooks
run on the attention layers of the UNet by their names, widths and tokens, without what lies between them, which no hook sees; SDXL has 70
of cross-attention and as many of self-attention, and of the reference there every fifth of the layers that are alike is timed and counts five
times. Whole steps of a UNet of Stable Diffusion 1.5's size with random weights are timed as a check.

A figure is a ratio of medians, and of the two UNets' the larger one. Generated weights (rank 4, all projections, different for each row) have no
counterpart in A1111; their overhead is compared with that of the reference's pairs on all widths. `switch_share` is the time from
one network to another between two images, its file read, as a share of an image of 20 steps.

About 10 minutes on 2 CPU cores; finished parts are kept in the output folder, so that an interrupted run goes on where it stopped.
"""
from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from measuring import machine, medians, seconds
from random_models import LATENT_FACTOR, AttentionLayers, RandomHost, configuration, random_context, sd15_unet
from reference import in_every_layer
from report import arguments, kept, table, write_figures
from torch import nn

from hypernetworks.attention import Attachment, LowRankEdit, find_projections, network_widths
from hypernetworks.catalog import Catalog
from hypernetworks.files import save
from hypernetworks.prompt import ActiveNetwork
from hypernetworks.residual import ResidualHypernetwork, ResidualStructure
from hypernetworks.session import Session

SHAPES = ("SD1.5", "SDXL")
EVERY = {"SD1.5": 1, "SDXL": 5}  # of layers that are alike, which the reference is timed on
STEPS = 20
STRENGTH = 0.8
RANK = 4
SWISH = ResidualStructure((1, 2, 1), "swish")
CONTEXT, ALL = ("attn2",), ("attn1", "attn2")
KINDS = {
    "context": (CONTEXT, SWISH, 1), "default": (ALL, SWISH, 1), "linear": (ALL, ResidualStructure((1, 2, 1), "linear"), 1),
    "wide": (CONTEXT, ResidualStructure((1, 2, 4, 2, 1), "swish"), 1), "chained": (CONTEXT, SWISH, 3),
}  # fmt: skip
LABELS = {
    "context": "context only", "default": "all widths", "linear": "all widths, linear", "wide": "context only, 1-2-4-2-1",
    "chained": "three chained, context only", "generated": "generated weights",
}  # fmt: skip
WHOLE = ("context", "default")  # timed as whole steps, too


def networks(unet: nn.Module, kind: str) -> list[ResidualHypernetwork]:
    """Random networks for a UNet, of float32 as files have them."""
    layers, structure, count = KINDS[kind]
    made = [ResidualHypernetwork(network_widths(unet, layers), structure, "KaimingNormal", seed) for seed in range(count)]
    return [network.eval().requires_grad_(False) for network in made]


class Stopwatch:
    """Adds up the time between its hooks, in which other hooks run."""

    def __init__(self) -> None:
        self.total = self._since = 0.0

    def start(self, *_: Any) -> None:
        self._since = time.perf_counter()

    def stop(self, *_: Any) -> None:
        self.total += time.perf_counter() - self._since

    def on(self, modules: Sequence[nn.Module], hook: Callable[..., None]) -> contextlib.ExitStack:
        """`hook` before and after each module, until the stack is closed."""
        stack = contextlib.ExitStack()
        for module in modules:
            stack.callback(module.register_forward_pre_hook(hook).remove)
            stack.callback(module.register_forward_hook(hook).remove)
        return stack


class Pass:
    """Evaluations of a UNet with 512 px (`small`: 256), a row with the prompt and one with the negative prompt."""

    def __init__(self, unet: nn.Module, small: bool) -> None:
        side = (256 if small else 512) // LATENT_FACTOR
        self.unet, self.latents, self.timesteps = unet, torch.randn(2, 4, side, side), torch.tensor([500, 500])
        self.modules = [unet, *(projection.module for projection in find_projections(unet))]
        self.context = random_context(2, unet)

    @torch.no_grad()
    def run(self) -> None:
        """A context in another tensor each time, as web UIs have it."""
        self.unet(self.latents, self.timesteps, encoder_hidden_states=self.context.clone())

    def in_hooks(self, edits: contextlib.AbstractContextManager) -> float:
        """Seconds that one evaluation spends in the hooks of `edits`; putting them on and off is left to the caller to time."""
        watch = Stopwatch()
        with watch.on(self.modules, watch.start), edits, watch.on(self.modules, watch.stop):
            self.run()
        return watch.total

    def over_an_image(self, attachment: Any) -> float:
        """Mean seconds of a step in an image whose context stays: hooks, and putting them on and off. `attachment` is new to the context."""
        first, later = (self.in_hooks(_at_work(attachment, watch := Stopwatch())) + watch.total for _ in range(2))
        return (first + (STEPS - 1) * later) / STEPS


@contextmanager
def _at_work(attachment: Any, watch: Stopwatch) -> Iterator[None]:
    watch.start()
    attachment.put_on()
    watch.stop()
    yield
    watch.start()
    attachment.remove()
    watch.stop()


class Shelf:
    """Networks as files, and a session that puts them on a UNet as a host does."""

    def __init__(self, unet: nn.Module, folder: Path) -> None:
        self.host, self.folder = RandomHost(unet, folder), folder
        self.session = self.new_session()
        self.names = {kind: self._save(kind, networks(unet, kind)) for kind in KINDS}

    def _save(self, kind: str, made: Sequence[ResidualHypernetwork]) -> list[str]:
        names = [f"{kind}{number}" for number in range(len(made))]
        for name, network in zip(names, made, strict=True):
            save(network, self.folder / f"{name}.safetensors")
        return names

    def new_session(self) -> Session:
        """One that has loaded nothing yet."""
        return Session(Catalog(self.folder))

    def prepare(self, kind: str, session: Session | None = None) -> Any:
        """The networks of a kind, ready to be put on."""
        active = [ActiveNetwork(name, STRENGTH) for name in self.names[kind]]
        return (session or self.session).prepare(self.host, [active])


def generated(unet: nn.Module) -> LowRankEdit:
    """Random low-rank weights for all projections, different for each of the two rows."""
    generator = torch.Generator().manual_seed(0)
    return LowRankEdit({
        projection.name: (
            torch.randn(2, RANK, projection.in_width, generator=generator), torch.randn(2, projection.out_width, RANK, generator=generator)
        )
        for projection in find_projections(unet)
    })  # fmt: skip


def overheads(shape: str, small: bool) -> dict[str, float]:
    """Median seconds per step in hooks, "ours KIND" and "reference KIND"."""
    about, every = configuration(shape, small), EVERY[shape]
    cells = (256 if small else 512) // LATENT_FACTOR
    ours, theirs = Pass(AttentionLayers(about, cells), small), Pass(AttentionLayers(about, cells, every), small)
    with tempfile.TemporaryDirectory() as folder:
        shelf = Shelf(ours.unet, Path(folder))
        measures: dict[str, Callable[[], float]] = {}
        for kind in KINDS:
            chain = networks(ours.unet, kind)
            measures[f"ours {kind}"] = lambda kind=kind: ours.over_an_image(shelf.prepare(kind))
            measures[f"reference {kind}"] = lambda chain=chain: every * theirs.in_hooks(in_every_layer(theirs.unet, chain, STRENGTH))
        weights = generated(ours.unet)
        measures["ours generated"] = lambda: ours.over_an_image(Attachment(ours.unet, [weights]))
        return medians(measures)


def whole_steps(small: bool) -> dict[str, float]:
    """Median seconds of whole steps of Stable Diffusion 1.5's UNet; the context was seen before."""
    evaluation = Pass(sd15_unet(small), small)
    with tempfile.TemporaryDirectory() as folder:
        shelf = Shelf(evaluation.unet, Path(folder))
        measures: dict[str, Callable[[], float]] = {"none": lambda: _timed(evaluation, contextlib.nullcontext())}
        for kind in WHOLE:
            applied, chain = shelf.prepare(kind), networks(evaluation.unet, kind)
            measures[f"ours {kind}"] = lambda applied=applied: _timed(evaluation, _at_work(applied, Stopwatch()))
            measures[f"reference {kind}"] = lambda chain=chain: _timed(evaluation, in_every_layer(evaluation.unet, chain, STRENGTH))
        return medians(measures)


def _timed(evaluation: Pass, edits: contextlib.AbstractContextManager) -> float:
    with edits:
        return seconds(evaluation.run)


def switches(small: bool) -> dict[str, float]:
    """Median seconds from one network to another between two images, the file read."""
    unet = AttentionLayers(configuration("SD1.5", small), (256 if small else 512) // LATENT_FACTOR)
    with tempfile.TemporaryDirectory() as folder:
        shelf = Shelf(unet, Path(folder))

        def switch(kind: str) -> float:
            session = shelf.new_session()
            before = shelf.prepare("context", session)
            before.put_on()
            start = time.perf_counter()
            before.remove()
            after = shelf.prepare(kind, session)
            after.put_on()
            duration = time.perf_counter() - start
            after.remove()
            return duration

        return medians({kind: lambda kind=kind: switch(kind) for kind in ("default", "linear")})


def figures(found: dict[str, dict[str, float]], whole: dict[str, float], switch: dict[str, float]) -> dict[str, float]:
    """The ratios, of both shapes the larger."""
    ratios = {kind: max(times[f"ours {kind}"] / times[f"reference {kind}"] for times in found.values()) for kind in KINDS}
    ratios["generated"] = max(times["ours generated"] / times["reference default"] for times in found.values())
    return {f"overhead_{kind}": ratio for kind, ratio in ratios.items()} | {"switch_share": max(switch.values()) / (STEPS * whole["none"])}


def rows(found: dict[str, dict[str, float]]) -> list[list]:
    """The printed table: milliseconds per step, and ratios."""
    lines = []
    for shape, times in found.items():
        for kind, label in LABELS.items():
            mine, theirs = times[f"ours {kind}"], times[f"reference {kind if kind in KINDS else 'default'}"]
            lines.append([shape, label, theirs * 1e3 if kind in KINDS else None, mine * 1e3, mine / theirs])
    return lines


def main() -> None:
    options = arguments("generation", __doc__).parse_args()
    small, settings = options.small, (options.small, machine())
    found = {shape: kept(options.out, f"overheads {shape}", settings, lambda shape=shape: overheads(shape, small)) for shape in SHAPES}
    whole = kept(options.out, "whole steps", settings, lambda: whole_steps(small))
    switch = kept(options.out, "switches", settings, lambda: switches(small))
    print(f"Two rows, {256 if small else 512} px{', narrower UNets' if small else ''}; {machine()}. In hooks, per step:")
    print(table(("UNet", "networks", "reference, ms", "ours, ms", "ratio"), rows(found)))
    print("Whole steps of Stable Diffusion 1.5's UNet, as a check:")
    print(table(("networks", "seconds", "of a step without"), [[name, value, value / whole["none"]] for name, value in whole.items()]))
    print(table(("switching to", "ms"), [[LABELS[kind], value * 1e3] for kind, value in switch.items()]))
    result = figures(found, whole, switch)
    print(table(("figure", "value"), list(result.items())))
    write_figures(options.json, result, machine=machine(), seconds=found | {"whole steps": whole, "switches": switch})


if __name__ == "__main__":
    main()
