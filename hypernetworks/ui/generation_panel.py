"""Which hypernetworks act on a picture: rows of name, strength, from when to when, and what a generator's weights are made for. Web UIs
show it beside the prompt."""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from typing import Any

import gradio as gr

from ..catalog import Catalog
from ..errors import HypernetworkError
from ..host import Host
from ..prompt import ActiveNetwork, tag
from . import compatibility
from .condition_inputs import LABELS, PROMPT, ConditionInputs, read_conditions

ReadPanel = Callable[[Mapping[str, Any]], "tuple[list[ActiveNetwork], str] | None"]
"""From an infotext's labels and values to rows and passes; None where it says nothing about pictures."""

NONE = "None"
ROWS = 4


class NetworkRows:
    """Build it within a page. `prefix` begins every element's id, so that a page may have several.

    `inputs` are four of each row, and then what each row's generator makes its weights for, as arguments of a tag. These are asked for in one place
    for all rows: `which` says for which row, `questions` are the rest.

    The server says only which of the networks are generators, and what for (`answer`). All that is shown of conditions and said by them is
    decided by the page's script, which knows what the user has done since.
    """

    def __init__(self, host: Host, catalog: Catalog, prefix: str = "hypernetworks_") -> None:
        self.host, self.catalog = host, catalog
        self.names: list[gr.Dropdown] = []
        self.conditions: list[gr.Textbox] = []
        self.inputs: list[gr.components.Component] = []
        self._add_row(1, prefix)
        self.refresh_button = gr.Button("Refresh list", size="sm", elem_id=f"{prefix}refresh")
        with gr.Accordion("More at once", open=False, elem_id=f"{prefix}more_networks"):
            for number in range(2, ROWS + 1):
                self._add_row(number, prefix)
        self.which = gr.Dropdown(
            choices=[], value=row_label(1), label="Conditions of", allow_custom_value=True, visible=False, elem_id=f"{prefix}which",
            info="There are several generators; what is chosen below is for this one.",
        )  # fmt: skip
        self.answer = gr.Textbox(value="", show_label=False, elem_id=f"{prefix}generators", elem_classes=["hypernetworks-hidden"])
        for component in (self.which, self.answer):
            component.do_not_save_to_config = True
        self.questions = ConditionInputs(self.host, self.catalog, "generator", prefix)
        self.tags = gr.Textbox(
            label="Tag", info="The same in words: write it into a prompt instead, in any web UI with this extension.", interactive=False,
            elem_id=f"{prefix}tags", **compatibility.copy_button(),
        )  # fmt: skip
        self.inputs += self.conditions
        self._wire(prefix)

    def _add_row(self, number: int, prefix: str) -> None:
        first = number == 1
        with gr.Group():
            with gr.Row():
                name = gr.Dropdown(
                    choices=self.choices(), value=NONE, label=row_label(number), allow_custom_value=True, scale=3, min_width=180,
                    elem_id=f"{prefix}network_{number}",
                )  # fmt: skip
                strength = gr.Slider(
                    minimum=-2, maximum=2, step=0.05, value=1, label="Strength", scale=3, min_width=160, elem_id=f"{prefix}strength_{number}"
                )
            with gr.Row():
                about = {"minimum": 0, "maximum": 1, "step": 0.05, "scale": 1, "min_width": 160}
                words = ["0 is the first sampling step.", "1 is the last sampling step."] if first else [None, None]
                start = gr.Slider(value=0, label="From", info=words[0], elem_id=f"{prefix}start_{number}", **about)
                end = gr.Slider(value=1, label="To", info=words[1], elem_id=f"{prefix}end_{number}", **about)
            # in the page but unseen: gradio tells no change of what is not in the page
            condition = gr.Textbox(value="", show_label=False, elem_id=f"{prefix}said_{number}", elem_classes=["hypernetworks-hidden"])
        for component in (name, condition):  # a web UI would offer yesterday's list, or its conditions (modules/ui_loadsave.py)
            component.do_not_save_to_config = True
        self.names.append(name)
        self.conditions.append(condition)
        self.inputs += [name, strength, start, end]

    def _wire(self, prefix: str) -> None:
        self.refresh_button.click(self.refresh, self.names, self.names, queue=False)
        compatibility.followed([component.change for component in self.inputs], self.write_tags, self.inputs, [self.tags])
        about = {
            "panel": prefix, "rows": [row_label(number) for number in range(1, ROWS + 1)], "questions": len(self.questions.offered),
            "labels": LABELS, "prompt": PROMPT, "pairs": compatibility.CHOICES_ARE_PAIRS,
        }  # fmt: skip
        self._wire_conditions(json.dumps(about))

    def _wire_conditions(self, about: str) -> None:
        """The user's answers are said at once; what is shown anew says nothing, or one row's answers would become another's. `about` is what the
        page's script has to know of the panel."""
        questions = self.questions
        before = [self.which, *self.conditions]
        say = f"(...values) => window.hypernetworks?.conditions({about}, values)"
        said = {"fn": None, "inputs": [*before, *questions.inputs], "outputs": self.conditions, **compatibility.script(say)}
        sources = (questions.first, questions.second)
        compatibility.on_input([*(component for source in sources for component in (source.kind, source.text, source.task)), questions.blend], said)
        for source in sources:
            source.kept.then(**said)
        show = compatibility.script(f"(...values) => window.hypernetworks?.questions({about}, values)")
        inputs = [self.answer, *before, *self.names, *questions.inputs]
        shown = {"fn": None, "inputs": inputs, "outputs": [*before, *questions.offered], **show}
        for number, name in enumerate(self.names, 1):
            chose = f"(...values) => {{ window.hypernetworks?.chose({about}, {number}, values) }}"
            name.change(None, before, None, **compatibility.script(chose))
            for asked in compatibility.followed([name.change], self.ask, self.names, [self.answer]):
                asked.then(**shown)
        self.which.change(**shown)

    def choices(self) -> list[str]:
        """What the dropdowns offer."""
        return [NONE, *self.catalog.names()]

    def refresh(self, *chosen: str) -> list[Any]:
        """The dropdowns after another look at the folder; what is gone is no longer chosen. A name that stays is not told again: it may have been
        changed on the page since it was asked for."""
        self.catalog.refresh()
        choices = self.choices()
        return [gr.update(choices=choices) if name == NONE or self._leads_to_a_file(name) else gr.update(choices=choices, value=NONE) for name in chosen]

    def _leads_to_a_file(self, name: str) -> bool:
        """Names that are not listed may too, such as paths within the folder."""
        try:
            return bool(self.catalog.path(name))
        except HypernetworkError:
            return False

    def select(self, name: str, *chosen: str) -> list[Any]:
        """The dropdowns with `name` in the first row; the others stay."""
        _, *others = self.refresh(*chosen)
        return [gr.update(choices=self.choices(), value=name), *others]

    def ask(self, *names: str) -> str:
        """What each of these generators can be asked for, by name, in JSON; null for what is none."""
        return json.dumps({name or "": self._about(name) for name in names})

    def generators(self, names: Sequence[str]) -> list[int]:
        """The numbers of the rows whose network is a generator."""
        return [number for number, name in enumerate(names, 1) if self._about(name)]

    def _about(self, name: str) -> dict[str, list[str]] | None:
        return None if name == NONE else self.questions.about(name)

    def active(self, values: Sequence[Any]) -> list[ActiveNetwork]:
        """The networks of rows with a name, from the values of `inputs`, which may end before the conditions. Raises `HypernetworkError` for
        a start behind its end, and where a condition is still to be given."""
        rows = [values[index : index + 4] for index in range(0, 4 * ROWS, 4)]
        return [
            replace(read_conditions(condition or "", name.strip()), strength=float(strength), start=float(start), end=float(end))
            for (name, strength, start, end), condition in zip_longest(rows, values[4 * ROWS :], fillvalue="")
            if name and name.strip() and name != NONE
        ]

    def values(self, active: Sequence[ActiveNetwork]) -> list[Any]:
        """What `inputs` show for these networks; rows beyond `ROWS` are left out."""
        shown: list[ActiveNetwork | None] = [*active[:ROWS], *[None] * (ROWS - len(active))]
        rows = [[NONE, 1.0, 0.0, 1.0] if one is None else [one.name, one.strength, one.start, one.end] for one in shown]
        return [*(value for row in rows for value in row), *("" if one is None else ConditionInputs.said(ConditionInputs.values(one)) for one in shown)]

    def asked(self, active: Sequence[ActiveNetwork]) -> list[Any]:
        """What `which` and the questions show for these networks."""
        number = next(iter(self.generators([one.name for one in active[:ROWS]])), 1)
        return [row_label(number), *ConditionInputs.values(active[number - 1] if active else None)]

    def write_tags(self, *values: Any) -> str:
        """The rows as tags; empty while a row is not valid."""
        try:
            return " ".join(tag(active) for active in self.active(values))
        except HypernetworkError:
            return ""


def row_label(number: int) -> str:
    """What a row is called."""
    return f"Hypernetwork {number}"


class GenerationPanel:
    """The rows in a web UI, folded up beside its other scripts, with a choice for hires fix. `prefix` tells txt2img's from img2img's."""

    def __init__(
        self, host: Host, catalog: Catalog, prefix: str, passes: Sequence[str], is_img2img: bool = False, open: bool = False
    ) -> None:
        with gr.Accordion("Hypernetworks", open=open, elem_id=f"{prefix}panel"):
            self.rows, self.only_pass = NetworkRows(host, catalog, prefix), passes[0] if is_img2img else None
            self.passes = gr.Radio(
                choices=list(passes), value=passes[0], label="With hires fix, act in", visible=not is_img2img, elem_id=f"{prefix}passes"
            )
        self.inputs = [*self.rows.inputs, self.passes]

    def chosen(self, values: Sequence[Any]) -> tuple[list[ActiveNetwork], str]:
        """Networks and passes, from the values of `inputs`. Raises as `NetworkRows.active` does."""
        *rows, passes = values
        return self.rows.active(rows), self.only_pass or passes

    def infotext_fields(self, read_panel: ReadPanel) -> list[tuple[gr.components.Component, Callable[[Mapping[str, Any]], Any]]]:
        """For the web UI's pasting: each input with a function from the infotext to its value; None leaves the input as it is."""

        def value(index: int, infotext: Mapping[str, Any]) -> Any:
            found = read_panel(infotext)
            return None if found is None else [*self.rows.values(found[0]), *self.rows.asked(found[0])][index]

        def passes(infotext: Mapping[str, Any]) -> Any:
            found = read_panel(infotext)
            return None if found is None else found[1]

        shown = [*self.rows.inputs, self.rows.which, *self.rows.questions.inputs]
        return [*((one, partial(value, index)) for index, one in enumerate(shown)), (self.passes, passes)]
