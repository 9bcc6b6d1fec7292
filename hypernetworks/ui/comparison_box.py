"""Two runs side by side: their curves in one chart, their last previews, and the options that differ."""
from __future__ import annotations

from typing import Any

import gradio as gr
from PIL import Image

from ..comparing import Seen, differences, look, run_names
from ..config import TrainingConfig, options, said, shortened
from ..errors import ConfigError, HypernetworkError
from ..host import Host
from .markup import data_uri, duration, escape, note, plural
from .progress import HEIGHT, WIDTH, axes, line, placed, running_mean, value_range

SIDE = 256  # pixels of a preview
MOST_PREVIEWS = 8
KINDS = ("first", "second")


class ComparisonBox:
    """Build it within a page, then `wire` it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        with gr.Accordion("Compare two runs", open=False, elem_id="hypernetworks_comparing"):
            with gr.Row():
                self.first, self.second = (
                    gr.Dropdown(choices=[], value=None, label=label, allow_custom_value=True, min_width=180, elem_id=f"hypernetworks_{kind}_run")
                    for label, kind in (("One run", "first"), ("The other", "second"))
                )
            self.button = gr.Button("Compare", size="sm", elem_id="hypernetworks_compare_runs")
            self.result = gr.HTML(elem_id="hypernetworks_comparison", elem_classes=["hypernetworks-notes"])
        for part in (self.first, self.second):
            part.do_not_save_to_config = True

    def wire(self, refresh: gr.Button) -> None:
        """Connects them; `refresh` is pressed whenever the page lists its networks anew."""
        silent = {"show_progress": "hidden"}
        refresh.click(self.refreshed, None, [self.first, self.second], queue=False, **silent)
        self.button.click(self.compare, [self.first, self.second], [self.result], **silent)

    def refreshed(self) -> list[Any]:
        """The choices after another look at the folder of runs."""
        return [gr.update(choices=run_names(self.host.folders))] * 2

    def compare(self, first: str | None, second: str | None) -> str:
        """Both runs as HTML."""
        try:
            if not first or not second or first == second:
                raise ConfigError("Choose two different runs.")
            return comparison(look(self.host.folders, first), look(self.host.folders, second))
        except HypernetworkError as error:
            return note(str(error))


def comparison(first: Seen, second: Seen) -> str:
    """Chart, facts, previews and the options that differ."""
    return f'<div class="hypernetworks-card hypernetworks-comparison">{chart(first, second)}{_previews(first, second)}{_differences(first, second)}</div>'


def chart(first: Seen, second: Seen) -> str:
    """The running means of both losses, and both validation losses dashed, over the same steps."""
    curves = [(kind, running_mean(run.losses), run.validation_losses) for kind, run in zip(KINDS, (first, second), strict=True)]
    points = [point for _, losses, validation in curves for point in (*losses, *validation)]
    if not points:
        return note("Neither run has got to a step.", "hint")
    low, high = value_range([], points)
    last = max(1.0, *(step for step, _ in points))
    lines = "".join(
        line(kind, placed(losses, last, low, high)) + line(f"{kind} hypernetworks-held-out", placed(validation, last, low, high))
        for kind, losses, validation in curves
    )
    legend = "".join(f'<span class="hypernetworks-{kind}">{escape(run.name)}</span>' for kind, run in zip(KINDS, (first, second), strict=True))
    return (
        f'<figure class="hypernetworks-chart"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Losses of both runs">'
        f"{axes(last, low, high)}{lines}</svg><figcaption>{legend}<small>running mean of the loss; dashed: validation loss</small></figcaption></figure>"
    )


def _previews(first: Seen, second: Seen) -> str:
    numbers = sorted({*first.previews, *second.previews})[:MOST_PREVIEWS]
    rows = "".join(f"<tr>{_picture(first, number)}{_picture(second, number)}</tr>" for number in numbers)
    head = "".join(f"<th>{escape(run.name)}<br><small>{escape(_about(run))}</small></th>" for run in (first, second))
    return f'<table class="hypernetworks-pair"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _about(run: Seen) -> str:
    steps = int(max((step for step, _ in [*run.losses[-1:], *run.validation_losses[-1:]]), default=0))
    best = min((loss for step, loss in run.validation_losses if step), default=None)
    words = [plural(steps, "step"), str(run.result.get("ending", "not ended"))]
    if isinstance(seconds := run.result.get("seconds"), (int, float)):
        words.append(duration(seconds))
    if best is not None:
        words.append(f"lowest validation loss {best:.4f}")
    return " · ".join(words + [f"previews of step {run.preview_step:,}"] * bool(run.previews))


def _picture(run: Seen, number: int) -> str:
    try:
        with Image.open(run.previews[number]) as picture:
            return f'<td><img src="{data_uri(picture, SIDE)}" alt="Preview {number} of {escape(run.name)}"></td>'
    except (KeyError, OSError):
        return "<td>–</td>"


def _differences(first: Seen, second: Seen) -> str:
    known = options(TrainingConfig)
    rows = "".join(f"<tr><td>{known[name].label}</td><td>{_said(one)}</td><td>{_said(other)}</td></tr>" for name, one, other in differences(first, second))
    if not rows:
        return '<p class="hypernetworks-words">All options are the same.</p>'
    head = f"<tr><th>Option</th><th>{escape(first.name)}</th><th>{escape(second.name)}</th></tr>"
    return f'<div class="hypernetworks-wide"><table data-differences=""><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def _said(value: Any) -> str:
    return escape(shortened(said(value), 200)) or "–"
