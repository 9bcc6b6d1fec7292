"""A training run as the page shows it: a bar, words, and the loss over time as a small drawing."""
from __future__ import annotations

import math
import time
from collections.abc import Sequence

from ..jobs import ENDINGS, Job
from .markup import duration, escape, note

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 640, 260  # of the chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 40  # its margins


def state_of(job: Job | None) -> str:
    """That of the run, or "idle" where there is none."""
    if job is None:
        return "idle"
    return job.state


def status(job: Job | None) -> str:
    """Bar, words, warnings and chart."""
    if job is None:
        return nothing("idle")
    state = state_of(job)
    warnings = "".join(note(warning, "warning") for warning in job.warnings)
    foreseen = note(job.foreseen, "hint") if state == "running" else ""
    ending = job.last.message if state in ENDINGS and job.last is not None else ""
    notes = foreseen + note(job.error or "") + note(ending, "hint") + warnings
    return _framed(state, _heading(job, state) + _bar(job, state) + notes + _chart_of(job))


def nothing(state: str = "unknown") -> str:
    """What is shown without a run, and by a new page that has not asked yet ("unknown")."""
    text = "Nothing is being trained. Progress, a loss chart and previews will appear here, and training goes on when you close the page."
    return _framed(state, note(text, "hint"))


def _framed(state: str, body: str) -> str:
    """The page's script reads `data-state`, and sees by `data-tick` that an answer has come."""
    return f'<div class="hypernetworks-status" data-state="{state}" data-tick="{time.monotonic_ns()}">{body}</div>'


def _heading(job: Job, state: str) -> str:
    words = {
        "running": {None: "Training", "stop": "Saving after this step:", "cancel": "Cancelling after this step:"}[job.ending],
        "failed": "Stopped by an error:",
        "finished": "Finished:",
        "stopped": "Stopped and saved:",
        "cancelled": "Cancelled, nothing saved:",
    }[state]
    return f'<h3 class="hypernetworks-heading">{words} {escape(job.config.name)}</h3>'


def _bar(job: Job, state: str) -> str:
    at = job.position
    share = min(1.0, at.step / at.steps) if at is not None else 0.0
    return (
        f'<div class="hypernetworks-bar hypernetworks-{state}" role="progressbar" aria-label="Training progress" aria-valuemin="0" aria-valuemax="100"'
        f' aria-valuenow="{share * 100:.0f}"><div style="width:{share * 100:.2f}%"></div></div>'
        f'<p class="hypernetworks-words">{escape(_words(job, state))}</p>'
    )


def _words(job: Job, state: str) -> str:
    at, step = job.position, job.last_step
    if at is None:
        return "Waiting for the model …" if state == "running" else ""
    if at.kind == "preparing":
        return f"{at.message or 'Preparing the pictures'}: {at.step:,} of {at.steps:,}"
    parts = [f"Step {at.step:,} of {at.steps:,}"]
    if step is not None:
        if state == "running" and step.seconds_left is not None:
            parts.append(f"about {duration(step.seconds_left)} left")
        if step.loss is not None:
            parts.append(f"loss {step.loss:.4f}")
        if step.rate is not None:
            parts.append(f"learning rate {step.rate:.2g}")
    return " · ".join(parts)


def _chart_of(job: Job) -> str:
    with job.lock:
        losses, validation = job.losses.points(), job.validation_losses.points()
        steps = job.last_step.steps if job.last_step is not None else 0
    return chart(losses, validation, steps) if len(losses) > 1 else ""


def chart(losses: Points, validation: Points, steps: int = 0) -> str:
    """The loss over the steps as SVG: each point, their running mean, and the held-out pictures' loss. Colours are the style sheet's."""
    mean = running_mean(losses)
    low, high = value_range(losses, [*mean, *validation])
    last = max(steps, 1, *(x for x, _ in [losses[-1], *validation[-1:]]))

    def place(points: Points) -> list[tuple[float, float]]:
        return placed(points, last, low, high)

    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in place(validation)) if len(validation) <= 40 else ""
    entries = [("loss", "Loss at each step"), ("mean", "Running mean"), *([("validation", "Validation loss")] if validation else [])]
    legend = "".join(f'<span class="hypernetworks-{kind}">{label}</span>' for kind, label in entries)
    return (
        f'<figure class="hypernetworks-chart"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Loss over the training steps">'
        f"{axes(last, low, high)}{line('loss', place(losses))}{line('mean', place(mean))}{line('validation', place(validation))}"
        f'<g class="hypernetworks-validation">{dots}</g></svg><figcaption>{legend}</figcaption></figure>'
    )


def placed(points: Points, last: float, low: float, high: float) -> list[tuple[float, float]]:
    """Where (step, value) lies on a chart of steps up to `last` and values from `low` to `high`; what is beyond them lies at its edge."""
    return [
        (LEFT + x / last * (WIDTH - LEFT - RIGHT), TOP + (high - min(max(y, low), high)) / (high - low) * (HEIGHT - TOP - BOTTOM)) for x, y in points
    ]


def running_mean(points: Points) -> list[tuple[float, float]]:
    """Each value averaged with those before it, over a tenth of the line."""
    window = max(1, len(points) // 10)
    averaged, total = [], 0.0
    for index, (x, y) in enumerate(points):
        total += y
        if index >= window:
            total -= points[index - window][1]
        averaged.append((x, total / min(index + 1, window)))
    return averaged


def value_range(losses: Points, always: Points) -> tuple[float, float]:
    """Lowest and highest value to show: all of `always`, and the losses but for the outermost hundredth at each end."""
    values = sorted(y for _, y in losses)
    cut = len(values) // 100
    shown = [*([values[cut], values[-1 - cut]] if values else []), *(y for _, y in always)]
    low, high = min(shown), max(shown)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return max(0.0, low - margin) if low >= 0 else low - margin, high + margin


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers within `low`..`high`, about `count` of them, at distances of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def axes(last: float, low: float, high: float) -> str:
    """Grid, numbers and words of a chart."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value in ticks(low, high, 4):
        y = TOP + (high - value) / (high - low) * (bottom - TOP)
        parts.append(f'<line class="hypernetworks-grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for value in ticks(0, last, 6):
        if value == int(value):
            x = LEFT + value / last * (right - LEFT)
            parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{value:,.0f}</text>')
    parts.append(f'<line class="hypernetworks-axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">step</text>')
    middle = (TOP + bottom) / 2
    parts.append(f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">loss</text>')
    return "".join(parts)


def line(kind: str, points: Points) -> str:
    """The points, which are placed already, as one line of a class of the style sheet's."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="hypernetworks-{kind}" points="{path}"/>' if points else ""
