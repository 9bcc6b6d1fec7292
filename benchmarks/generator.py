"""Does a generator do its job? One picture of a style that it never saw goes in; how close do the weights come to a LoRA that was trained on that style?

    python benchmarks/generator.py [--small] [--json FILE] [--out FOLDER] [--seeds 3]

The generator of the embedded model (`hypernetworks.embedded.train_generator`) is trained with several seeds and compared on held-out styles with
*shared*, one LoRA of the same rank trained on all of its training styles, blind to any condition; and *oracle*, a LoRA trained on
pictures of the held-out style itself. The measure is the denoising loss, weighted as in training, on pictures that none of them saw, at fixed
noise and timesteps. Further: a LoRA trained on the one reference picture, a LoRA trained from zero for as long as a generated one is refined, and
what a judge that never saw a drawn picture (classifier.py) says of pictures drawn with each.

Hours on 2 CPU cores; finished parts are kept in the output folder, so that an interrupted run goes on where it stopped.
"""
from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from classifier import SMALL, Effort, prepare, shape_label, to_pixels
from PIL import Image
from random_models import SD15
from report import arguments, grid, kept, table, write_figures
from torch import Tensor

from hypernetworks import Hypernetwork
from hypernetworks.attention import attached
from hypernetworks.batches import spread_timesteps
from hypernetworks.conditioning import condition_of_picture
from hypernetworks.config import TrainingConfig, read
from hypernetworks.embedded import MODEL, shapes
from hypernetworks.embedded.make_styles import contents_of, held_out_styles, make_style, make_styles, training_styles
from hypernetworks.embedded.train_generator import OPTIONS, STRUCTURE, train_generator
from hypernetworks.generator import apply_weights
from hypernetworks.generator_files import load_generator
from hypernetworks.host import Folders, GenerationRequest, Host, PictureSize
from hypernetworks.hosts.diffusers import DiffusersHost
from hypernetworks.lora import Weights, export_lora
from hypernetworks.losses import add_noise, denoising_target, min_snr_weights
from hypernetworks.low_rank import LowRankWeights
from hypernetworks.trainer import HypernetworkTrainer

SEEN, LOOKED_AT = 16, 8  # pictures of a held-out style: the oracle learns from the first, the loss is measured on those behind them
TIMESTEPS = 8  # each picture is measured at half of them
RATE = "3e-3"  # of all LoRAs
REFINED = 40  # steps
CFG_SCALE, SAMPLING_STEPS, AT_ONCE = 3.0, 20, 16
RESAMPLES = 10_000  # of the bootstrap
SHARED, ORACLE, GENERATOR, BARE = "shared", "oracle", "generator", "none"


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    training: int = 1000  # styles below this number
    pictures: int = 12  # of each
    held_out: int = 16
    family: int = 4  # held-out styles of each family that was never trained
    steps: int = OPTIONS["max_steps"]
    shared_steps: int = 800  # it learns nothing more after some 600
    oracle_steps: int = 240
    one_picture_steps: int = 120
    scratch_steps: tuple[int, ...] = (40, 70, 100)
    prompts: int = 6  # drawn in each held-out style
    judge: Effort = Effort()


QUICK = Size(40, 4, 3, 1, 8, 8, 8, 8, (2, 4), 1, SMALL)


class Bench:
    """The model, the held-out styles, and what is measured on them."""

    def __init__(self, out: Path, size: Size) -> None:
        self.out, self.size = out, size
        self.host = DiffusersHost(folders=Folders.below(out))
        self.styles = held_out_styles(size.held_out)
        self.families = {name: held_out_styles(size.family, name) for name in ("palette night", "fill checks")}
        self._yardsticks: dict[int, Yardstick] = {}

    def kept(self, name: str, settings: Any, make: Callable[[], Any]) -> Any:
        """What was measured before with equal settings, else what `make` measures."""
        return kept(self.out, name, (settings, self.host.model.hash, RATE, SEEN, LOOKED_AT, TIMESTEPS), make)

    def yardstick(self, style: int) -> Yardstick:
        """Of one style."""
        if style not in self._yardsticks:
            self._yardsticks[style] = Yardstick(self.host, style)
        return self._yardsticks[style]

    def losses(self, weights: Callable[[int], Weights | None], styles: Sequence[int]) -> dict[str, float]:
        """Of each style, with the weights that `weights` has for it."""
        found = {}
        for style in styles:
            with acting(self.host, weights(style)):
                found[str(style)] = self.yardstick(style).loss()
        return found

    # --- what is trained ---

    def generator(self, seed: int) -> Hypernetwork:
        """Trained with that seed."""
        path = self.out / f"generator seed {seed} of {self.size.steps} steps.safetensors"
        if not path.is_file():
            styles = make_styles(self.out / "styles" / f"{self.size.pictures} each", training_styles(self.size.training), self.size.pictures)
            train_generator(styles, path, self.host, seed=seed, max_steps=self.size.steps)
        return load_generator(path)

    def shared(self, seed: int) -> Weights:
        """One LoRA for all training styles."""
        path = self.out / f"shared seed {seed} of {self.size.shared_steps} steps.pt"
        if not path.is_file():
            weights = LowRankWeights.new(self.host.unet, STRUCTURE["rank"], seed=seed)
            styles = make_styles(self.out / "styles" / f"{self.size.pictures} each", training_styles(self.size.training), self.size.pictures)
            for _ in self._training(weights, flat(styles, self.out / "flat"), self.size.shared_steps, OPTIONS["batch_size"], seed):
                pass
            torch.save(weights.weights(), path)
        return torch.load(path, weights_only=True)

    def reference(self, style: int) -> Image.Image:
        """The first picture of a held-out style: the one that everything that sees one picture sees."""
        return Image.open(self.pictures(style) / "01.png")

    def pictures(self, style: int, count: int = SEEN) -> Path:
        """A folder with the first pictures of a style."""
        return make_style(self.out / "held out" / f"{count} each" / f"{style:05}", style, count)

    def curve(self, weights: LowRankWeights, style: int, pictures: int, steps: int, every: int, seed: int) -> dict[int, float]:
        """Step -> loss of a LoRA that is trained on the first pictures of a style."""
        found = {}
        for step in self._training(weights, self.pictures(style, pictures), steps, 4, seed):
            if step % every == 0:
                with torch.no_grad():
                    found[step] = self.yardstick(style).loss()
        return found

    def _training(self, weights: LowRankWeights, pictures: Path, steps: int, batch_size: int, seed: int) -> Iterator[int]:
        """The steps' numbers, each when it is done and the weights are at work."""
        config = read(TrainingConfig, {
            "name": "measured", "max_steps": steps, "batch_size": batch_size, "learning_rate": RATE, "warmup_steps": min(10, steps - 1), "seed": seed,
            "caption_dropout": 0.05, "validation_share": 0.0, "validation_every": 0, "preview_every": 0, "checkpoint_every": 0,
        })  # fmt: skip
        for event in HypernetworkTrainer(weights, config).run(pictures, self.host, overwrite=True):
            if event.kind == "step":
                yield event.step


class Yardstick:
    """The denoising loss on pictures of one style that nothing is trained on, at fixed noise and timesteps."""

    def __init__(self, host: Host, style: int) -> None:
        contents = contents_of(style, SEEN + LOOKED_AT)[SEEN:]
        pixels = to_pixels([shapes.draw(content, shapes.random_style(style)) for content in contents])
        self.host, self.latents = host, host.encode_pictures(pixels.float() / 127.5 - 1)[0]
        self.conditioning = host.encode_prompts([content.caption() for content in contents])
        self.noise = torch.randn(self.latents.shape, generator=torch.Generator().manual_seed(style))
        moments = spread_timesteps(TIMESTEPS, len(host.alphas_cumprod))
        self.timesteps = [torch.tensor([moments[(place + shift) % TIMESTEPS] for place in range(LOOKED_AT)]) for shift in range(0, TIMESTEPS, 2)]

    def loss(self) -> float:
        """As training weighs it, with what is at work on the UNet now."""
        with torch.no_grad():
            return mean(float(self._weighted(timesteps)) for timesteps in self.timesteps)

    def _weighted(self, timesteps: Tensor) -> Tensor:
        alphas, kind = self.host.alphas_cumprod[timesteps], self.host.model.prediction_type
        side = self.host.model.resolution
        sizes = [PictureSize((side, side), (0, 0), (side, side))] * len(timesteps)
        predicted = self.host.predict(add_noise(self.latents, self.noise, alphas), timesteps, self.conditioning, sizes)
        errors = (predicted - denoising_target(self.latents, self.noise, alphas, kind)).square().flatten(1).mean(1)
        return (errors * min_snr_weights(alphas, OPTIONS.get("min_snr_gamma", TrainingConfig.min_snr_gamma), kind)).mean()


@contextmanager
def acting(host: Host, weights: Weights | None) -> Iterator[None]:
    """The weights at work on the host's UNet; None is the bare model."""
    with attached(host.unet, []) if weights is None else apply_weights(host.unet, weights):
        yield


def flat(styles: Path, folder: Path) -> Path:
    """All pictures of a folder of folders in one, as links."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in styles.glob("*/*"):
        link = folder / f"{path.parent.name} {path.name}"
        if not link.exists():
            link.hardlink_to(path)
    return folder


# --- losses ---------------------------------------------------------------------------------------------------------------------


def measure_losses(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """Of one seed's generator and shared LoRA, on held-out styles and on those of the families: who -> style -> loss."""
    generator, shared = bench.generator(seed), bench.shared(seed)
    of_families = [style for styles in bench.families.values() for style in styles]

    def generated(style: int) -> Weights:
        with torch.no_grad():
            return generator(condition_of_picture(bench.host, bench.reference(style)))

    def for_another(style: int) -> Weights:
        return generated(bench.styles[(bench.styles.index(style) + max(1, len(bench.styles) // 3)) % len(bench.styles)])

    everywhere = [*bench.styles, *of_families]
    return {
        GENERATOR: bench.losses(generated, everywhere),
        "wrong reference": bench.losses(for_another, bench.styles),
        SHARED: bench.losses(lambda style: shared, everywhere),
        BARE: bench.losses(lambda style: None, everywhere),
    }


def measure_adaptation(bench: Bench, style: int, seed: int) -> dict[str, Any]:
    """What training on a held-out style itself reaches: the oracle, one picture, from zero, and refined from generated weights."""
    size, unet = bench.size, bench.host.unet
    new = lambda: LowRankWeights.new(unet, STRUCTURE["rank"], seed=seed)  # noqa: E731
    generator = bench.generator(seed)
    with torch.no_grad():
        generated = generator(condition_of_picture(bench.host, bench.reference(style)))
    refined = bench.curve(LowRankWeights(generated), style, SEEN, min(REFINED, size.scratch_steps[0]), min(REFINED, size.scratch_steps[0]), seed)
    return {
        ORACLE: min(bench.curve(new(), style, SEEN, size.oracle_steps, size.oracle_steps // 4, seed).values()),
        "one picture": bench.curve(new(), style, 1, size.one_picture_steps, max(1, size.one_picture_steps // 12), seed),
        "scratch": {steps: bench.curve(new(), style, SEEN, steps, steps, seed)[steps] for steps in size.scratch_steps},
        "refined": list(refined.values())[-1],
    }


def gap_closed(losses: Mapping[str, Mapping[str, float]], oracle: Mapping[str, float], styles: Sequence[str]) -> float:
    """The share of the way from the shared LoRA to the oracle that the generator goes, of mean losses over the styles."""
    shared, generated, best = (mean(of[style] for style in styles) for of in (losses[SHARED], losses[GENERATOR], oracle))
    return (shared - generated) / (shared - best)


def confidence_low(losses: Sequence[Mapping[str, Mapping[str, float]]], oracle: Mapping[str, float], styles: Sequence[str]) -> float:
    """The lower end of the share's 95 % interval: styles are drawn anew with replacement, of each the mean over the seeds counts."""
    together = {who: {style: mean(of[who][style] for of in losses) for style in styles} for who in (SHARED, GENERATOR)}
    rng = random.Random(0)
    found = sorted(gap_closed(together, oracle, rng.choices(styles, k=len(styles))) for _ in range(RESAMPLES))
    return found[round(0.025 * RESAMPLES)]


def steps_matched(scratch: Mapping[int, float], loss: float) -> float:
    """How many steps from zero reach a loss, straight lines between those that were tried; the most that were tried where none does."""
    points = sorted((int(steps), value) for steps, value in scratch.items())
    if loss >= points[0][1]:
        return points[0][0]
    for (before, high), (after, low) in zip(points, points[1:], strict=False):
        if low <= loss < high:
            return before + (after - before) * (high - loss) / (high - low)
    return points[-1][0]


# --- pictures -------------------------------------------------------------------------------------------------------------------


def drawn_contents(bench: Bench, style: int) -> list[shapes.Content]:
    """What is drawn in a held-out style: contents that none of its pictures has."""
    return contents_of(style, SEEN + LOOKED_AT + bench.size.prompts)[SEEN + LOOKED_AT :]


def draw(bench: Bench, weights: Callable[[int], Weights | None]) -> list[Image.Image]:
    """The contents of all held-out styles, each style with its weights; the same seeds for everybody."""
    side, pictures = bench.host.model.resolution, []
    for style in bench.styles:
        prompts = tuple(content.caption() for content in drawn_contents(bench, style))
        request = GenerationRequest("", steps=SAMPLING_STEPS, cfg_scale=CFG_SCALE, width=side, height=side, seed=style, count=len(prompts), prompts=prompts)
        with acting(bench.host, weights(style)):
            pictures += bench.host.generate(request)
    return pictures


def measure_pictures(bench: Bench, who: str, seed: int) -> dict[str, float]:
    """What the judge says of pictures drawn by `who`: shares of right styles and of right shapes."""
    generator, shared = bench.generator(seed), bench.shared(seed)

    def generated(style: int) -> Weights:
        with torch.no_grad():
            return generator(condition_of_picture(bench.host, bench.reference(style)))

    weights = {GENERATOR: generated, SHARED: lambda style: shared, BARE: lambda style: None}[who]
    pictures = draw(bench, weights)
    grid(pictures, bench.size.prompts, [f"{who}, style {style}" for style in bench.styles]).save(bench.out / f"pictures of {who}, seed {seed}.png")
    judged = judge_of(bench)[0].judge(to_pixels(pictures)).tolist()
    wanted = [(place, content, style) for place, style in enumerate(bench.styles) for content in drawn_contents(bench, style)]
    return {
        "style": mean(float(found[0] == place) for found, (place, _, _) in zip(judged, wanted, strict=True)),
        "shape": mean(float(same_shape(found[1], content, style)) for found, (_, content, style) in zip(judged, wanted, strict=True)),
    }


def judge_of(bench: Bench) -> tuple[Any, dict[str, Any]]:
    """The judge of the held-out styles and of the plain manner, with its accuracy."""
    from diffusers import AutoencoderKL

    styles = {str(style): shapes.random_style(style) for style in bench.styles} | {"plain": shapes.PLAIN}
    autoencoder = AutoencoderKL.from_pretrained(MODEL, subfolder="vae").float().eval()
    return prepare(autoencoder, bench.out, bench.size.judge, styles, other=False)


def same_shape(found: int, content: shapes.Content, style: int) -> bool:
    """Whether the shape that was seen is the one that was asked for; in an outlined style a ring and a circle are the same."""
    manner = shapes.random_style(style)
    return shape_label(shapes.SHAPES[found], manner) == shape_label(content.shape, manner)


# --- cost -----------------------------------------------------------------------------------------------------------------------


def measure_cost(bench: Bench) -> dict[str, float]:
    """What weights cost beside pictures, and a file; what a step costs at Stable Diffusion 1.5's size is in training_step's way."""
    host, generator, picture = bench.host, bench.generator(0), bench.reference(bench.styles[0])
    side = host.model.resolution
    with torch.no_grad():
        making = timed(lambda: generator(condition_of_picture(host, picture)))
        weights = generator(condition_of_picture(host, picture))
    request = GenerationRequest("a red star", steps=20, cfg_scale=7.0, width=side, height=side)
    with acting(host, weights):
        job = timed(lambda: host.generate(request))
    return {"generation_share_of_job": making / (making + job), "cached_ms": cached_ms(bench, generator), "export_mb": export_mb()}


def cached_ms(bench: Bench, generator: Hypernetwork) -> float:
    """Milliseconds to find weights again that were made before."""
    from hypernetworks.generating import Conditions, GeneratedWeights, Recipe
    from hypernetworks.prompt import ConditionSource
    from hypernetworks.references import References

    name = References(bench.host.folders.references).keep(bench.pictures(bench.styles[0]) / "01.png")
    recipe, store = Recipe(ConditionSource("reference", name)), GeneratedWeights()
    store.get(generator, recipe, Conditions(bench.host))
    return 1000 * timed(lambda: store.get(generator, recipe, Conditions(bench.host)))


def export_mb() -> float:
    """Megabytes of a LoRA file of rank 4 for Stable Diffusion 1.5."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15)
    hypernetwork = Hypernetwork(rank=4, embedding_dim=64, hidden_dim=64, basis_size=2, conditions=("task",), tasks=("one",)).bind(unet)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        from hypernetworks.conditions import Condition

        weights = hypernetwork(Condition(task=torch.tensor([0])))
        return export_lora(weights, Path(folder) / "made.safetensors", "sd1").stat().st_size / 1e6


def timed(call: Callable[[], Any], times: int = 5) -> float:
    """Seconds, the median of several calls after one to warm up."""
    call()
    found = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return median(found)


# --- all together ---------------------------------------------------------------------------------------------------------------


def figures(losses: Sequence[dict], adapted: Mapping[str, dict], pictures: Mapping[str, Sequence[dict]], styles: Sequence[str]) -> dict[str, float]:
    """All but the cost. Losses are of all seeds; what is trained on the held-out styles is of the first."""
    oracle = {style: about[ORACLE] for style, about in adapted.items()}
    over = lambda values: mean(values[style] for style in styles)  # noqa: E731
    generated = over(losses[0][GENERATOR])
    one_picture = mean(min(adapted[style]["one picture"].values()) for style in styles)
    scratch = {steps: mean(about["scratch"][steps] for about in adapted.values()) for steps in next(iter(adapted.values()))["scratch"]}
    refined = mean(about["refined"] for about in adapted.values())
    style_of = {who: mean(one["style"] for one in of) for who, of in pictures.items()}
    shape_of = {who: mean(one["shape"] for one in of) for who, of in pictures.items()}
    return {
        "gap_closed": mean(gap_closed(of, oracle, styles) for of in losses),
        "gap_closed_ci_low": confidence_low(losses, oracle, styles),
        "wrong_reference_ratio": mean(over(of["wrong reference"]) / over(of[GENERATOR]) for of in losses),
        "oneshot_excess_ratio": (generated - over(oracle)) / (one_picture - over(oracle)),
        "scratch_steps_matched_by_40": steps_matched(scratch, refined),
        "style_accuracy_over_chance": style_of[GENERATOR] * len(styles),
        "style_accuracy_minus_shared": style_of[GENERATOR] - style_of[SHARED],
        "content_drop_points": 100 * (shape_of[BARE] - shape_of[GENERATOR]),
    }


def report(losses: Sequence[dict], adapted: Mapping[str, dict], bench: Bench) -> str:
    """Tables in Markdown: a row per style, means of the families, the training from zero."""
    over = lambda who, style: mean(of[who][str(style)] for of in losses)  # noqa: E731
    rows = [
        (style, str(shapes.random_style(style).words()) or "-", *(over(who, style) for who in (BARE, SHARED, GENERATOR, "wrong reference")),
         adapted[str(style)][ORACLE], min(adapted[str(style)]["one picture"].values()), adapted[str(style)]["refined"])
        for style in bench.styles
    ]
    means = ("mean", "", *(mean(row[place] for row in rows) for place in range(2, 9)))
    columns = ("style", "manner", "bare", SHARED, GENERATOR, "wrong reference", ORACLE, "one picture", f"refined {REFINED}")
    families = [(name, *(mean(over(who, style) for style in styles) for who in (BARE, SHARED, GENERATOR))) for name, styles in bench.families.items()]
    scratch = [(steps, mean(about["scratch"][steps] for about in adapted.values())) for steps in next(iter(adapted.values()))["scratch"]]
    return "\n".join([
        table(columns, [[cell if isinstance(cell, str) else f"{cell:.4f}" if isinstance(cell, float) else cell for cell in row] for row in (*rows, means)]), "",
        "Families that no style trained on belongs to:", "",
        table(("family", "bare", SHARED, GENERATOR), [(name, *(f"{value:.4f}" for value in row)) for name, *row in families]), "",
        "LoRAs from zero:", "", table(("steps", "loss"), [(steps, f"{value:.4f}") for steps, value in scratch]), "",
    ])


def main() -> None:
    """The command line."""
    parser = arguments("generator", __doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many generators are trained (default: %(default)s; 1 with --small)")
    options = parser.parse_args()
    bench = Bench(options.out, QUICK if options.small else Size())
    options.out.mkdir(parents=True, exist_ok=True)
    seeds, size = range(1 if options.small else options.seeds), bench.size
    losses = [bench.kept(f"losses seed {seed}", (seed, size), lambda seed=seed: measure_losses(bench, seed)) for seed in seeds]
    adapted = {
        str(style): bench.kept(f"adaptation {style}", (style, size), lambda style=style: measure_adaptation(bench, style, 0)) for style in bench.styles
    }
    pictures = {
        who: [bench.kept(f"pictures {who} seed {seed}", (who, seed, size), lambda who=who, seed=seed: measure_pictures(bench, who, seed)) for seed in (seeds if who != BARE else [0])]
        for who in (BARE, SHARED, GENERATOR)
    }
    found = figures(losses, adapted, pictures, [str(style) for style in bench.styles]) | measure_cost(bench)
    text = report(losses, adapted, bench) + "\n" + table(("figure", "value"), list(found.items()))
    print("\n" + text)
    (options.out / "generator.md").write_text(text + "\n", encoding="utf-8")
    write_figures(options.json, found, losses=losses, pictures=pictures, judge=judge_of(bench)[1])


if __name__ == "__main__":
    main()
