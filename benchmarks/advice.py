"""The runs behind docs/guide.md: the style preset, and what changes when one thing about it does.

    python benchmarks/advice.py [--small] [--json FILE] [--out FOLDER]

Every variant is trained on the demo's 16 striped pictures and judged like in `effect.py`, on the same prompts. About twenty minutes on 2
CPU cores; finished parts are kept in the output folder.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from effect import ALL_ROWS, PER_LAYER, PROMPT_ROWS, QUICK, Bench, Size
from report import arguments, table, write_figures

STYLE = "striped"
VARIANTS: dict[str, dict[str, Any]] = {
    "the preset": {},
    "a quarter of the steps": {"max_steps": 200},
    "layers attn2 only": {"target_layers": ("attn2",)},
    "1, 2, 1 with swish": {"layer_structure": (1, 2, 1), "activation": "swish"},
    "10 % empty captions": {"caption_dropout": 0.1},
    "captions name the style": {"caption_template": "[filewords], striped"},
}


class Advice(Bench):
    """`effect.py`'s bench, with options of one's own in place of a network's name."""

    def options(self, style: str, network: str) -> dict[str, Any]:
        """The preset's options with a variant's changes."""
        name = f"{style}-{network}".replace(" ", "-")
        return super().options(style, PER_LAYER) | {"name": name} | VARIANTS[network]


def rows(bench: Advice, names: Sequence[str]) -> list[tuple]:
    """One line per variant: style, shape and colour with the network on the prompt's rows only, and on all rows."""
    found = []
    for name in names:
        measured = bench.measure(STYLE, name)
        prompt, every = measured[PROMPT_ROWS], measured[ALL_ROWS]
        found.append((name, prompt.style, prompt.shape, prompt.color, every.style, every.shape, every.color, round(prompt.seconds)))
    return found


def main() -> None:
    """The command line."""
    options = arguments("advice", __doc__).parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    size = replace(QUICK, styles=(STYLE,)) if options.small else replace(Size(), styles=(STYLE,))
    names = ("the preset", "captions name the style") if options.small else tuple(VARIANTS)
    found = rows(Advice(options.out, size), names)
    heading = ("variant", "style", "shape", "colour", "style, all rows", "shape, all rows", "colour, all rows", "seconds of training")
    text = table(heading, found)
    print("\n" + text)
    (options.out / "advice.md").write_text(text + "\n", encoding="utf-8")
    write_figures(options.json, {f"style_{row[0]}".replace(" ", "_"): row[1] for row in found})


if __name__ == "__main__":
    main()
