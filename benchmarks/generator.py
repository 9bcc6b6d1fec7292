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

import contextlib
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from classifier import prepare, shape_label, to_pixels
from held_out import LOOKED_AT, QUICK, SEEN, Bench, Size, acting
from measuring import machine, medians, seconds
from PIL import Image
from random_models import LATENT_FACTOR, SD15, RandomHost, random_context, sd15_unet, twin
from report import arguments, grid, table, write_figures

from hypernetworks import Hypernetwork
from hypernetworks.conditioning import condition_of_picture
from hypernetworks.conditions import Condition
from hypernetworks.config import TrainingConfig, read
from hypernetworks.embedded import MODEL, shapes
from hypernetworks.embedded.make_styles import contents_of
from hypernetworks.embedded.train_generator import STRUCTURE
from hypernetworks.generating import Conditions, GeneratedWeights, Recipe
from hypernetworks.host import GenerationRequest
from hypernetworks.lora import Weights, export_lora
from hypernetworks.low_rank import LowRankWeights
from hypernetworks.prompt import ConditionSource
from hypernetworks.references import References
from hypernetworks.trainer import HypernetworkTrainer

REFINED = 40  # steps
CFG_SCALE, SAMPLING_STEPS = 3.0, 20
RESAMPLES = 10_000  # of the bootstrap
SHARED, ORACLE, GENERATOR, BARE = "shared", "oracle", "generator", "none"


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
    """What weights cost beside pictures, and the size of a file."""
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
        weights = hypernetwork(Condition(task=torch.tensor([0])))
        return export_lora(weights, Path(folder) / "made.safetensors", "sd1").stat().st_size / 1e6


def step_vs_bare(small: bool) -> float:
    """A training step of a generator of the default size for Stable Diffusion 1.5's UNet, against one forward pass of the frozen UNet and one
    backward pass to its input: 256 px, batch 1, in turns."""
    side = 64 if small else 256
    unet = sd15_unet(small)
    latents = torch.randn(1, 4, side // LATENT_FACTOR, side // LATENT_FACTOR)
    context, timestep, bare_unet = random_context(1, unet), torch.tensor([500]), twin(unet)

    def bare() -> None:
        bare_unet(latents.requires_grad_(), timestep, encoder_hidden_states=context).sample.square().mean().backward()

    with tempfile.TemporaryDirectory() as folder:
        for number in range(4):
            path = Path(folder) / "pictures" / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((side, side), 20 + number).convert("RGB").save(path)
            path.with_suffix(".txt").write_text(f"picture {number}", encoding="utf-8")
        config = read(TrainingConfig, {
            "name": "measured", "kind": "generator", "conditions": "text", "resolution": side, "batch_size": 1, "max_steps": 10_000, "learning_rate": "1e-5",
            "validation_share": 0.0, "validation_every": 0, "preview_every": 0, "checkpoint_every": 0,
        })  # fmt: skip
        with contextlib.closing(HypernetworkTrainer(config=config).run(Path(folder) / "pictures", RandomHost(unet, Path(folder)))) as events:
            found = medians({"bare": lambda: seconds(bare), "ours": lambda: seconds(lambda: next_step(events))})
    return found["ours"] / found["bare"]


def next_step(events: Iterator[Any]) -> None:
    """Until the trainer has done another step."""
    while next(events).kind != "step":
        pass


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
    found["step_vs_bare"] = bench.kept("step", (options.small, machine()), lambda: step_vs_bare(options.small))
    text = report(losses, adapted, bench) + "\n" + table(("figure", "value"), list(found.items()))
    print("\n" + text)
    (options.out / "generator.md").write_text(text + "\n", encoding="utf-8")
    write_figures(options.json, found, losses=losses, pictures=pictures, judge=judge_of(bench)[1])


if __name__ == "__main__":
    main()
