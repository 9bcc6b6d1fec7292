"""Does a hypernetwork do its job? Four styles are trained on 16 captioned pictures each; pictures of 48 prompts that were not among the
captions are judged by a classifier that never saw a generated picture.

    python benchmarks/effect.py [--small] [--json FILE] [--out FOLDER]

Compared are the bare model, a hypernetwork with one pair of networks per attention layer, one with a pair per width (what A1111 reads),
and as a yardstick a LoRA on all attention layers. All are trained in as many steps, on the same batches. Each draws the prompts twice: acting
on all rows of the batch, as A1111 does, and acting only on the rows that see the prompt (`uncond=0` in a tag), where classifier-free
guidance strengthens the style as it strengthens the prompt.

About 40 minutes on 2 CPU cores; finished parts are kept in the output folder, so that an interrupted run goes on where it stopped.
"""
from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from classifier import COLORS, OTHER, SMALL, Effort, Judge, prepare, shape_label, to_pixels
from PIL import Image
from report import arguments, grid, kept, table, write_figures

from hypernetworks.attention import LowRankEdit, Strength, attached
from hypernetworks.catalog import Catalog
from hypernetworks.embedded import MODEL, shapes
from hypernetworks.embedded.make_pictures import contents, make_pictures
from hypernetworks.host import Folders, GenerationRequest, StepCallback
from hypernetworks.hosts.diffusers import DiffusersHost
from hypernetworks.low_rank import LowRankWeights
from hypernetworks.presets import preset
from hypernetworks.progress_bar import show
from hypernetworks.prompt import ActiveNetwork
from hypernetworks.session import Session
from hypernetworks.trainer import HypernetworkTrainer

LEARNED = ("striped", "dotted", "outlined", "sepia")
BARE, PER_LAYER, PER_WIDTH, LOW_RANK = "none", "per layer", "per width", "LoRA rank 4"
ALL_ROWS, PROMPT_ROWS = "all rows", "prompt rows"
RANK = 4
LOW_RANK_RATE = "3e-3"
SAMPLING_STEPS, CFG_SCALE, STRENGTH, SEED = 20, 4.0, 0.8, 1000
AT_ONCE = 16  # pictures drawn together
UNWATCHED = {"preview_every": 0, "validation_every": 0, "checkpoint_every": 0, "validation_share": 0.0}


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    styles: tuple[str, ...] = LEARNED
    prompts: int = 48
    steps: int = 800
    judge: Effort = Effort()


QUICK = Size(styles=("sepia",), prompts=12, steps=60, judge=SMALL)


@dataclass(frozen=True)
class Scores:
    """Shares of pictures whose style, shape and colour are right; colour is None where the style does not keep it. `seconds` of training."""

    style: float
    shape: float
    color: float | None
    seconds: float


class Bench:
    """The model, the judge and the prompts, and what is measured with them."""

    def __init__(self, out: Path, size: Size) -> None:
        self.out, self.size = out, size
        self.host = DiffusersHost(folders=Folders.below(out))
        self.session = Session(Catalog(self.host.folders.networks))
        self.prompts = unseen_contents(size.prompts)
        self.judge, self.judge_accuracy = self._prepare_judge()
        self._bare: list[Image.Image] | None = None

    def _prepare_judge(self) -> tuple[Judge, dict[str, Any]]:
        from diffusers import AutoencoderKL

        print("Preparing the judge ...", flush=True)
        return prepare(AutoencoderKL.from_pretrained(MODEL, subfolder="vae").float().eval(), self.out, self.size.judge)

    def ceiling(self, style: str) -> float:
        """Style accuracy on real renders after the autoencoder: no generator can do better."""
        return self.judge_accuracy["round trips"][style]["style"]

    def measure(self, style: str, network: str) -> dict[str, Scores]:
        """Trains `network` (or takes the bare model) on the style's pictures, draws the prompts, judges them: acting rows -> scores. Kept."""
        name, options = f"{style}-{network}".replace(" ", "-"), {} if network == BARE else self.options(style, network)
        how = [options, self.host.model.hash]
        print(f"\n{style}, {network}", flush=True)
        seconds = 0.0 if network == BARE else kept(self.out, f"training-{name}", how, lambda: self._train(style, network, options))
        how += [SAMPLING_STEPS, CFG_SCALE, STRENGTH, SEED, self.size.prompts, asdict(self.size.judge)]
        measured = kept(self.out, name, how, lambda: self._measure(style, network, name))
        return {rows: Scores(**scores, seconds=seconds) for rows, scores in measured.items()}

    def options(self, style: str, network: str) -> dict[str, Any]:
        """The training's options: the project's preset for styles, but all pictures are trained on and nothing is watched."""
        values = preset("style") | UNWATCHED | {"name": f"{style}-{network}".replace(" ", "-"), "max_steps": self.size.steps}
        if network == LOW_RANK:
            return values | {"learning_rate": LOW_RANK_RATE}
        return values | {"per_layer": network == PER_LAYER}

    def _train(self, style: str, network: str, options: dict[str, Any]) -> float:
        """Trains a network and leaves its file in the output folder; gives the seconds it took."""
        folder, started = self.out / "pictures" / style, time.monotonic()
        make_pictures(folder, shapes.STYLES[style])
        low_rank = LowRankWeights.new(self.host.unet, RANK) if network == LOW_RANK else None
        trainer = HypernetworkTrainer(low_rank, options)
        show(trainer, trainer.run(folder, self.host, overwrite=True))
        if low_rank is not None:
            torch.save(low_rank.weights(), self._low_rank_file(options["name"]))
        return time.monotonic() - started

    def _low_rank_file(self, name: str) -> Path:
        return self.out / f"{name}.pt"

    def _measure(self, style: str, network: str, name: str) -> dict[str, dict[str, float | None]]:
        found = {}
        for rows in (ALL_ROWS,) if network == BARE else (ALL_ROWS, PROMPT_ROWS):
            pictures = self.draw(network, name, rows)
            grid(pictures, 12).save(self.out / f"{name}-{rows}.png".replace(" ", "-"))
            found[rows] = self.score(pictures, style)
        return found

    def draw(self, network: str, name: str, rows: str) -> list[Image.Image]:
        """One picture per prompt, each with its own seed, with the network of that name acting on `rows`."""
        if network == BARE:
            self._bare = self._bare or self._draw(None)
            return self._bare
        if network == LOW_RANK:
            return self.draw_low_rank(LowRankEdit(torch.load(self._low_rank_file(name), weights_only=True)), rows)
        with self.session.applied(self.host, [ActiveNetwork(name, STRENGTH, uncond=rows == ALL_ROWS)]) as applied:
            return self._draw(applied.at_step)

    def draw_low_rank(self, edit: LowRankEdit, rows: str) -> list[Image.Image]:
        """The same with a LoRA."""

        def choose_rows(step: int, steps: int) -> None:
            edit.strength = Strength([STRENGTH * (rows == ALL_ROWS or not row.uncond) for row in self.host.rows])

        with attached(self.host.unet, [edit]):
            return self._draw(choose_rows)

    def _draw(self, on_step: StepCallback | None) -> list[Image.Image]:
        captions, side = [content.caption() for content in self.prompts], self.host.model.resolution
        drawn: list[Image.Image] = []
        for start in range(0, len(captions), AT_ONCE):
            prompts = tuple(captions[start : start + AT_ONCE])
            drawn += self.host.generate(
                GenerationRequest(
                    "", steps=SAMPLING_STEPS, cfg_scale=CFG_SCALE, width=side, height=side, seed=SEED + start, count=len(prompts), prompts=prompts
                ),
                on_step,
            )
        return drawn

    def score(self, pictures: Sequence[Image.Image], style: str) -> dict[str, float | None]:
        """What the judge says of pictures of the prompts that should be in this style."""
        judged = self.judge.judge(to_pixels(pictures)).tolist()
        styles, forms, colors = zip(*judged, strict=True)
        manner, names = shapes.STYLES[style], (*shapes.STYLES, OTHER)
        wanted_forms = [shape_label(content.shape, manner) for content in self.prompts]
        seen_forms = [shape_label(shapes.SHAPES[form], manner) for form in forms]
        return {
            "style": mean(float(names[number] == style) for number in styles),
            "shape": mean(float(seen == wanted) for seen, wanted in zip(seen_forms, wanted_forms, strict=True)),
            "color": None if manner.palette != "plain"
            else mean(float(COLORS[seen] == content.color) for seen, content in zip(colors, self.prompts, strict=True)),
        }


def unseen_contents(count: int) -> list[shapes.Content]:
    """Contents whose captions are not among the training pictures'; shapes, sizes and colours are balanced in every 16."""
    known = {content.caption() for content in contents()}
    found: list[shapes.Content] = []
    for seed in itertools.count(1000):
        drawn = contents(seed)
        if known.isdisjoint(captions := {content.caption() for content in drawn}):
            found, known = found + drawn, known | captions
        if len(found) >= count:
            return found[:count]
    raise AssertionError("itertools.count does not end")


Results = dict[str, dict[str, dict[str, Scores]]]  # style -> network -> acting rows -> scores


def style_share(bench: Bench, results: Results, network: str, rows: str = ALL_ROWS) -> float:
    """Mean style accuracy over the styles as a share of what the judge gives real pictures after the autoencoder."""
    return mean(of[network][rows].style / bench.ceiling(style) for style, of in results.items())


def content_drops(results: Results, network: str, rows: str) -> tuple[float, float]:
    """Percentage points of shape and of colour accuracy that the network loses against the bare model, means over the styles."""
    pairs = [(of[BARE][ALL_ROWS], of[network][rows]) for of in results.values()]
    colors = [bare.color - with_it.color for bare, with_it in pairs if bare.color is not None]
    return 100 * mean(bare.shape - with_it.shape for bare, with_it in pairs), 100 * mean(colors) if colors else 0.0


def figures(bench: Bench, results: Results) -> dict[str, float]:
    """The figures; those without a network's name are of the better kind of hypernetwork, the LoRA's of its own better rows."""
    oracle = max(style_share(bench, results, LOW_RANK, rows) for rows in (ALL_ROWS, PROMPT_ROWS))
    found, shares = {}, {}
    for network, rows in itertools.product((PER_LAYER, PER_WIDTH), (ALL_ROWS, PROMPT_ROWS)):
        name, (shape, color) = f"{network}_{rows}".replace(" ", "_"), content_drops(results, network, rows)
        shares[name] = found[f"style_accuracy_{name}"] = style_share(bench, results, network, rows)
        found[f"style_vs_oracle_lora_{name}"] = shares[name] / max(1e-9, oracle)
        found[f"shape_drop_points_{name}"], found[f"color_drop_points_{name}"] = shape, color
        found[f"content_drop_points_{name}"] = max(shape, color)
    best = max(shares, key=shares.get)
    goals = {name: found[f"{name}_{best}"] for name in ("style_accuracy", "style_vs_oracle_lora", "content_drop_points")}
    return goals | {
        "style_accuracy_without": style_share(bench, results, BARE),
        "style_accuracy_lora": oracle,
        "judge_accuracy": min(bench.judge_accuracy["renders"]["all"].values()),
    } | found


def report(bench: Bench, results: Results) -> str:
    """Two tables in Markdown: the judge, and the networks."""
    judged = [
        (style, what, *(row.get(part) for part in ("style", "shape", "colour")))
        for what, rows in bench.judge_accuracy.items() for style, row in rows.items()
    ]
    measured = [
        (style, network, "-" if network == BARE else rows, it.style, it.style / bench.ceiling(style), it.shape, it.color, round(it.seconds))
        for style, of in results.items() for network, by_rows in of.items() for rows, it in by_rows.items()
    ]
    columns = ("style", "network", "acts on", "style accuracy", "share of ceiling", "shape", "colour", "seconds of training")
    return "\n".join([
        "The judge on held-out pictures:", "", table(("class", "pictures", "style", "shape", "colour"), judged), "",
        f"{bench.size.prompts} unseen prompts, {SAMPLING_STEPS} DDIM steps, CFG scale {CFG_SCALE:g}, strength {STRENGTH:g}; {bench.size.steps} training steps:", "",
        table(columns, measured), "",
    ])


def main() -> None:
    """The command line."""
    options = arguments("effect", __doc__).parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.out, QUICK if options.small else Size())
    networks = (BARE, PER_WIDTH, PER_LAYER, LOW_RANK)
    results = {style: {network: bench.measure(style, network) for network in networks} for style in bench.size.styles}
    found, text = figures(bench, results), report(bench, results)
    text += "\n" + table(("figure", "value"), list(found.items()))
    print("\n" + text)
    (options.out / "effect.md").write_text(text + "\n", encoding="utf-8")
    write_figures(options.json, found)
    print(f"\nPictures and tables are in {options.out}")


if __name__ == "__main__":
    main()
