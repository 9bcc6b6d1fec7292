"""The queue of runs: a table of those that wait and of how the last ones came out, and the buttons of its rows."""
from __future__ import annotations

from typing import Any

import gradio as gr

from ..config import options, plain, said, shortened
from ..errors import HypernetworkError
from ..jobs import Jobs
from ..waiting import Ended, Queue, Waiting
from . import compatibility
from .markup import escape, note, plural
from .options_form import OptionsForm

CHOSEN = "() => [window.hypernetworks ? window.hypernetworks.queued() : '']"
MOST_OPTIONS = 6  # that a row names
MARKS = {"finished": "✓", "stopped": "✓", "cancelled": "–", "failed": "✗"}


class QueueBox:
    """Build it within a page. A row's button is the page's script's: it presses a hidden one, and what was asked is in `asked`: "up 3"."""

    def __init__(self, jobs: Jobs, form: OptionsForm) -> None:
        self.jobs, self.form = jobs, form
        self.table = gr.HTML(elem_id="hypernetworks_queue", elem_classes=["hypernetworks-notes"])
        self.hold_button = gr.Button("Hold the queue", size="sm", visible=False, elem_id="hypernetworks_queue_hold")
        with gr.Column(elem_id="hypernetworks_hidden_queue", elem_classes=["hypernetworks-hidden"]):
            self.act_button = gr.Button("Change the queue", elem_id="hypernetworks_queue_act")
            self.edit_button = gr.Button("Edit", elem_id="hypernetworks_queue_edit")
            self.asked = gr.Textbox(elem_id="hypernetworks_queue_asked", show_label=False)
        self.asked.do_not_save_to_config = True

    def wire(self, told: gr.components.Component) -> None:
        """Connects the buttons; `told` shows a sentence."""
        silent = {"show_progress": "hidden"}
        self.hold_button.click(self.hold, None, self.shown, queue=False, **silent)
        self.act_button.click(self.act, [self.asked], [told, *self.shown], queue=False, **silent, **compatibility.script(CHOSEN))
        edited = [told, *self.shown, *self.form.inputs.values()]
        self.edit_button.click(self.edit, [self.asked], edited, **silent, **compatibility.script(CHOSEN))

    @property
    def shown(self) -> list[Any]:
        """What `now` fills."""
        return [self.table, self.hold_button]

    def now(self) -> list[Any]:
        """The table and its button as the queue is."""
        queue = self.jobs.queue
        button = gr.update(visible=bool(queue.waiting), value="Start the queue" if queue.held else "Hold the queue")
        return [table(queue), button]

    def hold(self) -> list[Any]:
        """Holds the queue, or lets it go on."""
        queue = self.jobs.queue
        queue.hold(not queue.held)
        self.jobs.go_on()
        return self.now()

    def act(self, asked: str) -> list[Any]:
        """Moves or removes a run."""
        what, _, number = (asked or "").partition(" ")
        queue, by = self.jobs.queue, {"up": -1, "down": 1}
        try:
            if what in by:
                queue.shift(_number(number), by[what])
            else:
                queue.remove(_number(number))
        except HypernetworkError as error:  # another page was faster
            return [note(str(error)), *self.now()]
        return ["", *self.now()]

    def edit(self, asked: str) -> list[Any]:
        """Takes a run out of the queue and its options into the form."""
        try:
            one = self.jobs.queue.remove(_number((asked or "").partition(" ")[2]))
        except HypernetworkError as error:
            return [note(str(error)), *self.now(), *[gr.update()] * len(self.form.inputs)]
        how = " It was to go on with the network of that name." if one.resume else " It was to replace the network of that name." if one.overwrite else ""
        words = f"These are the options of {one.config.name}, which is out of the queue now: change them, and add it again.{how}"
        return [note(words, "hint"), *self.now(), *self.form.shown(vars(one.config), self.form.inputs)]


def table(queue: Queue) -> str:
    """What waits and what has ended, as HTML; nothing where there is neither."""
    waiting, ended = queue.waiting, queue.ended
    if not waiting and not ended:
        return ""
    rows = "".join(_row(one, place, len(waiting)) for place, one in enumerate(waiting)) + "".join(map(_ended_row, ended))
    held = note("The queue is held: no run begins by itself.", "warning") if queue.held and waiting else ""
    count = f"{plural(len(waiting), 'run waits', 'runs wait')}. The next one begins when one ends, in whatever way." if waiting else "No run waits."
    return f'<div class="hypernetworks-card hypernetworks-queue"><h4>Queue</h4><p class="hypernetworks-words">{count}</p>{held}<table><tbody>{rows}</tbody></table></div>'


def _row(one: Waiting, place: int, count: int) -> str:
    name = one.config.name
    buttons = "".join([
        _button("up", one, "↑", f"{name} earlier", place > 0), _button("down", one, "↓", f"{name} later", place < count - 1),
        _button("edit", one, "Edit", f"Edit {name}: back into the form"), _button("remove", one, "Remove", f"Remove {name}"),
    ])  # fmt: skip
    return f"<tr><td>{place + 1}</td><td><strong>{escape(name)}</strong><br><small>{escape(_about(one))}</small></td><td>{buttons}</td></tr>"


def _ended_row(one: Ended) -> str:
    button = _button("remove", one, "Forget", f"Forget {one.name}")
    words = f"<strong>{escape(one.name)}</strong><br><small>{escape(f'{one.state}: {one.sentence}')}</small>"
    return f'<tr data-ended="{escape(one.state)}"><td>{MARKS.get(one.state, "")}</td><td>{words}</td><td>{button}</td></tr>'


def _about(one: Waiting) -> str:
    """Whether it goes on or replaces, and the options that are not as usual."""
    known, values = options(type(one.config)), plain(one.config)
    changed = [f"{known[name].label} {shortened(said(value), 40)}" for name, value in values.items() if name not in ("name", "dataset", "max_steps")]
    more = [f"and {len(changed) - MOST_OPTIONS} more"] if len(changed) > MOST_OPTIONS else []
    how = ["continues"] * one.resume + ["replaces"] * one.overwrite
    return " · ".join([f"{one.config.max_steps:,} steps", *how, *changed[:MOST_OPTIONS], *more])


def _button(what: str, one: Waiting | Ended, text: str, label: str, enabled: bool = True) -> str:
    off = "" if enabled else " disabled"
    return f'<button type="button" data-queue="{what} {one.number}" title="{escape(label)}" aria-label="{escape(label)}"{off}>{text}</button>'


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else -1
