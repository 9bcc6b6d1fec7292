"""How many steps does the shipped preset for styles need to get as far as A1111's recipe? And which of its options buys what?

    python benchmarks/recipes.py [--small] [--weighted] [--json FILE] [--out FOLDER]

Both train on 16 pictures in one style. The measure is the plain denoising error on pictures of contents that are not among them, at fixed noise and
timesteps; or with --weighted the error as the trainer's validation weighs timesteps (min-SNR). *Reference* is A1111's recipe (modules/hypernetworks/hypernetwork.py: AdamW, Normal initial weights, linear 1-2-1, one pair of networks per width, one
picture per step, a constant rate), at the best of seven rates. What counts is the step at which it is best, and the first step at which the preset is as good. Then the
preset's options are set back to the reference's one by one.

About 40 minutes on one core; finished parts are kept in the output folder, so that an interrupted run goes on where it stopped.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from effect import unseen_contents
from held_out import Yardstick
from report import arguments, kept, table, write_figures
from tqdm import tqdm

from hypernetworks.config import TrainingConfig, read
from hypernetworks.embedded import shapes
from hypernetworks.embedded.make_pictures import make_pictures
from hypernetworks.errors import TrainingFailed
from hypernetworks.host import Folders
from hypernetworks.hosts.diffusers import DiffusersHost
from hypernetworks.presets import preset
from hypernetworks.trainer import HypernetworkTrainer

STYLE = "striped"
UNSEEN = 8  # pictures that the error is measured on
RATES = ("1e-5", "3e-5", "1e-4", "3e-4", "1e-3", "3e-3", "1e-2")
SEEDS = (0, 1, 2)
UNWATCHED = {"preview_every": 0, "validation_every": 0, "checkpoint_every": 0, "validation_share": 0.0, "explosion_factor": 0.0, "rollbacks": 0}
REFERENCE = {
    "per_layer": False, "layer_structure": (1.0, 2.0, 1.0), "activation": "linear", "weight_initialization": "Normal", "batch_size": 1,
    "learning_rate": "", "rate_schedule": "constant", "warmup_steps": 0, "clip_norm": 0.0, "caption_dropout": 0.0, "sample_latents": False,
    "loss_weighting": "none",
}  # fmt: skip
BACK = {
    "one picture per step": ("batch_size",),
    "one pair per width": ("per_layer",),
    "structure 1-2-1": ("layer_structure",),
    "Normal initial weights": ("weight_initialization",),
    "constant rate, no warm-up": ("rate_schedule", "warmup_steps"),
    "the reference's rate": ("learning_rate",),
    "no weighting of timesteps": ("loss_weighting",),
    "no average of weights": ("ema_decay",),
}
"""Which of the preset's options are set back to the reference's, by what the table calls that."""

Curve = dict[int, float]  # step -> error


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    steps: int = 1000  # of the reference
    set_back_steps: int = 400  # of the preset with options set back
    every: int = 20  # steps between two measurements
    rates: tuple[str, ...] = RATES
    seeds: tuple[int, ...] = SEEDS


QUICK = Size(steps=8, set_back_steps=8, every=4, rates=RATES[3:5], seeds=(0,))


class Bench:
    """The model, the pictures, and the curves of what is trained on them."""

    def __init__(self, out: Path, size: Size, weighted: bool = False) -> None:
        self.out, self.size, self.weighted = out, size, weighted
        self.host = DiffusersHost(folders=Folders.below(out))
        self.pictures = out / "pictures" / STYLE
        make_pictures(self.pictures, shapes.STYLES[STYLE])
        self.yardstick = Yardstick(self.host, shapes.STYLES[STYLE], unseen_contents(UNSEEN), seed=0)

    def curve(self, title: str, options: Mapping[str, Any], steps: int, seed: int, target: float = 0.0) -> Curve:
        """The error every few steps until it is no larger than `target`. A run that comes to nothing ends with infinity. Kept."""
        options = {**options, **UNWATCHED, "seed": seed, "name": "measured"}

        def make() -> list[tuple[int, float]]:
            return list(self._curve(title, options, steps, target).items())

        settings = (sorted(options.items()), steps, target, self.size.every, self.host.model.hash, UNSEEN, *(["weighted"] if self.weighted else []))
        return {int(step): error for step, error in kept(self.out, title.replace(",", ""), settings, make)}

    def _curve(self, title: str, options: Mapping[str, Any], steps: int, target: float) -> Curve:
        config, found = read(TrainingConfig, options), {0: self.yardstick.loss(self.weighted)}
        trainer = HypernetworkTrainer(config=config)
        events = trainer.run(self.pictures, self.host, overwrite=True)
        with tqdm(total=steps, desc=title) as bar:
            try:
                for event in events:
                    if event.kind != "step":
                        continue
                    bar.update()
                    if event.step % self.size.every == 0:
                        with trainer.shown():
                            found[event.step] = self.yardstick.loss(self.weighted)
                        if not math.isfinite(found[event.step]):
                            found[event.step] = math.inf
                        if found[event.step] <= target or event.step >= steps:
                            break
            except TrainingFailed:
                found[steps] = math.inf
            finally:
                events.close()
        return found


def best(curve: Curve) -> tuple[int, float]:
    """The step with the lowest error, and that error."""
    step = min(curve, key=curve.__getitem__)
    return step, curve[step]


def reached(curve: Curve, target: float) -> int | None:
    """The first step measured whose error is no larger; None where there is none."""
    return next((step for step, error in curve.items() if error <= target), None)


def reference_curves(bench: Bench) -> tuple[dict[str, Curve], str, dict[int, Curve]]:
    """Of every rate with the first seed; the best rate; and of that rate, every seed."""
    size = bench.size

    def curve(rate: str, seed: int) -> Curve:
        return bench.curve(f"reference, rate {rate}, seed {seed}", {**REFERENCE, "learning_rate": rate, "max_steps": size.steps}, size.steps, seed)

    by_rate = {rate: curve(rate, size.seeds[0]) for rate in size.rates}
    rate = min(by_rate, key=lambda one: best(by_rate[one])[1])
    return by_rate, rate, {seed: curve(rate, seed) for seed in size.seeds}


def back(preset_options: Mapping[str, Any], names: Sequence[str], rate: str) -> dict[str, Any]:
    """The preset with these options as the reference has them."""
    without = {**REFERENCE, "learning_rate": rate, "ema_decay": 0.0}
    return {**preset_options, **{name: without[name] for name in names}}


def main() -> None:
    """The command line."""
    parser = arguments("recipes", __doc__)
    parser.add_argument("--weighted", action="store_true", help="measure the error as the trainer's validation weighs timesteps")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.out, QUICK if options.small else Size(), options.weighted)
    by_rate, rate, reference = reference_curves(bench)
    ours = preset("style")
    goals = {seed: best(curve) for seed, curve in reference.items()}
    steps = min(bench.size.steps, ours["max_steps"])
    preset_curves = {seed: bench.curve(f"preset, seed {seed}", ours, steps, seed, goal) for seed, (_, goal) in goals.items()}
    found = {seed: (reached(curve, goals[seed][1]), goals[seed][0]) for seed, curve in preset_curves.items()}
    ratio = median(math.inf if ours_at is None else ours_at / at for ours_at, at in found.values())
    figures = {"reference_error": mean(error for _, error in goals.values()), "seeds_reached": sum(ours_at is not None for ours_at, _ in found.values())}
    figures |= {"steps_vs_reference": ratio} if math.isfinite(ratio) else {}  # no number where most seeds never came so far
    first = bench.size.seeds[0]
    without = {
        title: bench.curve(f"preset but {title}", back(ours, names, rate), bench.size.set_back_steps, first, goals[first][1])
        for title, names in BACK.items()
    }
    text = report(bench, by_rate, rate, goals, found, preset_curves[first], without)
    print("\n" + text)
    (options.out / "recipes.md").write_text(text + "\n", encoding="utf-8")
    write_figures(options.json, figures, rate=rate, steps=found)


def report(
    bench: Bench, by_rate: Mapping[str, Curve], rate: str, goals: Mapping[int, tuple[int, float]], found: Mapping[int, tuple[int | None, int]],
    whole: Curve, without: Mapping[str, Curve],
) -> str:  # fmt: skip
    """Three tables in Markdown."""
    first = bench.size.seeds[0]
    rates = [(one, *_shown(best(curve))) for one, curve in by_rate.items()]
    seeds = [(seed, *_shown(goals[seed]), ours_at, None if ours_at is None else ours_at / at) for seed, (ours_at, at) in found.items()]
    options = [(title, reached(curve, goals[first][1]), *_shown(best(curve))) for title, curve in {"nothing": whole, **without}.items()]
    return "\n".join([
        f"The reference at each rate, {bench.size.steps} steps:", "", table(("rate", "best at step", "error"), rates), "",
        f"The reference at {rate}, and the preset:", "", table(("seed", "best at step", "error", "the preset is as good at step", "share"), seeds), "",
        f"The preset with options set back, seed {first}, at most {bench.size.set_back_steps} steps:", "", table(("set back", "as good at step", "best at step", "error"), options),
    ])


def _shown(point: tuple[int, float]) -> tuple[int, str]:
    return point[0], f"{point[1]:.5f}"


if __name__ == "__main__":
    main()
