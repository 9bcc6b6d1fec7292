"""The runs behind docs/guide.md: the style preset, and what changes when one thing about it does.

    python benchmarks/advice.py [--small] [--json FILE] [--out FOLDER]

Every variant is trained on the demo's 16 striped pictures and judged like in `effect.py`, on half of its prompts. About half an hour on 2
CPU cores; finished parts are kept in the output folder.
"""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from effect import ALL_ROWS, PER_LAYER, PROMPT_ROWS, QUICK, Bench, Scores, Size
from report import arguments, table, write_figures

STYLE = "striped"
VARIANTS: dict[str, dict[str, Any]] = {
    "the preset": {},
    "a quarter of the steps": {"max_steps": 200},
    "half the rate": {"learning_rate": "auto*0.5"},
    "a rate four times as high": {"learning_rate": "auto*4"},
    "one pair per width": {"per_layer": False},
    "layers attn2 only": {"target_layers": ("attn2",)},
    "layers attn1 only": {"target_layers": ("attn1",)},
    "A1111's usual network (1, 2, 1, swish)": {"layer_structure": (1, 2, 1), "activation": "swish", "learning_rate": "auto*0.33"},
    "10 % empty captions": {"caption_dropout": 0.1},
    "captions name the style": {"caption_template": "[filewords], striped"},
    "no captions": {"caption_template": "a picture"},
}
HALF = replace(Size(), styles=(STYLE,), prompts=24)


class Advice(Bench):
    """`effect.py`'s bench, with options of one's own in place of a network's name."""

    def __init__(self, out: Path, size: Size, variants: dict[str, dict[str, Any]]) -> None:
        super().__init__(out, size)
        self.variants = variants

    def options(self, style: str, network: str) -> dict[str, Any]:
        """The preset's options with a variant's changes."""
        return super().options(style, PER_LAYER) | {"name": "".join(c if c.isalnum() else "-" for c in network)} | self.variants[network]


def rows(bench: Advice) -> list[tuple]:
    """One line per variant: style, shape and colour with the network on the prompt's rows only, and on all rows."""
    found = []
    for name in bench.variants:
        measured: dict[str, Scores] = bench.measure(STYLE, name)
        prompt, every = measured[PROMPT_ROWS], measured[ALL_ROWS]
        found.append((name, prompt.style, prompt.shape, prompt.color, every.style, every.shape, every.color, round(prompt.seconds)))
    return found


def main() -> None:
    """The command line."""
    options = arguments("advice", __doc__).parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    size = replace(QUICK, styles=(STYLE,)) if options.small else HALF
    names = list(VARIANTS)[:2] if options.small else list(VARIANTS)
    changes = {name: {"max_steps": size.steps} | VARIANTS[name] for name in names}
    if options.small:
        changes = {name: one | {"max_steps": size.steps} for name, one in changes.items()}
    found = rows(Advice(options.out, size, changes))
    heading = ("variant", "style", "shape", "colour", "style, all rows", "shape, all rows", "colour, all rows", "seconds of training")
    text = table(heading, found)
    print("\n" + text)
    (options.out / "advice.md").write_text(text + "\n", encoding="utf-8")
    write_figures(options.json, {f"style_{row[0]}".replace(" ", "_"): row[1] for row in found})


if __name__ == "__main__":
    main()
