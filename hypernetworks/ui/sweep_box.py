"""A sweep in the training tab: lists of values in, queued runs out, and a table of how they came out."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from .. import sweep
from ..config import TrainingConfig, plain
from ..errors import HypernetworkError, NameTaken
from ..host import Host
from ..jobs import Jobs
from .markup import code, escape, note, plural

HELP = "An option, a colon and values on each line. Values that hold commas are parted by semicolons. Every combination is a run of its own."


class SweepBox:
    """Build it within a page, then `wire` it."""

    def __init__(self, host: Host, jobs: Jobs) -> None:
        self.host, self.jobs = host, jobs
        with gr.Accordion("Try several values (a sweep)", open=False, elem_id="hypernetworks_sweep"):
            self.lines = gr.Textbox(
                lines=2, label="Values", info=HELP, placeholder="learning_rate: auto*0.5, auto, auto*2", elem_id="hypernetworks_sweep_lines"
            )
            self.button = gr.Button("Add the sweep to the queue", size="sm", elem_id="hypernetworks_sweep_add")
            self.table = gr.HTML(elem_id="hypernetworks_sweep_table", elem_classes=["hypernetworks-notes"])
        self.lines.do_not_save_to_config = True

    def add(self, config: TrainingConfig, lines: str, taken: Callable[[TrainingConfig], str]) -> str:
        """Queues the runs; gives a note. `taken` says of a run what there is of its name already. Raises `HypernetworkError`."""
        made = sweep.make(plain(config), sweep.lists_from_text(lines or ""))
        if there := [run.name for run in made.runs if taken(run)]:
            raise NameTaken(f"There is a hypernetwork or a run named {there[0]} already: give the sweep another name (step 2).")
        self.jobs.add_sweep(made, made.runs)
        return note(f"{plural(len(made.runs), 'run')} of the sweep {made.name} {'is' if len(made.runs) == 1 else 'are'} in the queue.", "good")

    def now(self) -> str:
        """The table of the newest sweep; nothing before the first."""
        try:
            found = sweep.names(self.host.folders)
            return table(found[0], sweep.outcomes(self.host.folders, found[0]), sweep.tables(self.host.folders, found[0])) if found else ""
        except HypernetworkError as error:
            return note(str(error))


def table(name: str, found: list[sweep.Outcome], files: list[Any]) -> str:
    """A sweep's outcomes as HTML; the lowest validation loss stands out."""
    head, *lines = sweep.table(found)
    lowest = sweep.best(found)
    heading = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    rows = "".join(
        f'<tr{" data-best" if place == lowest else ""}>{"".join(f"<td>{escape(cell)}</td>" for cell in line)}</tr>' for place, line in enumerate(lines)
    )
    where = f'<p class="hypernetworks-words">As files: {", ".join(map(code, files))}</p>' if files else ""
    return (
        f'<div class="hypernetworks-card hypernetworks-sweep"><h4>Sweep {escape(name)}</h4><div class="hypernetworks-wide">'
        f"<table><thead><tr>{heading}</tr></thead><tbody>{rows}</tbody></table></div>{where}</div>"
    )
