"""Which hypernetworks act on a picture: rows of name, strength, from when to when, and what a generator's weights are made for. Web UIs
show it beside the prompt."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

import gradio as gr

from ..catalog import Catalog
from ..errors import HypernetworkError
from ..host import Host
from ..prompt import ActiveNetwork, tag
from . import compatibility
from .condition_inputs import ConditionInputs

ReadPanel = Callable[[Mapping[str, Any]], "tuple[list[ActiveNetwork], str] | None"]
"""From an infotext's labels and values to rows and passes; None where it says nothing about pictures."""

NONE = "None"
ROWS = 4


class NetworkRows:
    """Build it within a page. `prefix` begins every element's id, so that a page may have several.

    `inputs` are four of each row, and then the rows' conditions.
    """

    def __init__(self, host: Host, catalog: Catalog, prefix: str = "hypernetworks_") -> None:
        self.host, self.catalog = host, catalog
        self.names: list[gr.Dropdown] = []
        self.inputs: list[gr.components.Component] = []
        self.conditions: list[ConditionInputs] = []
        self._add_row(1, prefix)
        self.refresh_button = gr.Button("Refresh list", size="sm", elem_id=f"{prefix}refresh")
        with gr.Accordion("More at once", open=False, elem_id=f"{prefix}more_networks"):
            for number in range(2, ROWS + 1):
                self._add_row(number, prefix)
        self.tags = gr.Textbox(
            label="Tag", info="The same in words: write it into a prompt instead, in any web UI with this extension.", interactive=False,
            elem_id=f"{prefix}tags", **compatibility.copy_button(),
        )  # fmt: skip
        self.inputs += [component for conditions in self.conditions for component in conditions.inputs]
        self.refresh_button.click(self.refresh, self.names, self.names, queue=False)
        quietly = {"queue": False, "show_progress": "hidden"}
        for component in self.inputs:
            component.change(self.write_tags, self.inputs, [self.tags], **quietly)
        for name, conditions in zip(self.names, self.conditions, strict=True):
            offered = name.change(conditions.offer, [name, *conditions.inputs], conditions.offered, **quietly)
            offered.then(self.write_tags, self.inputs, [self.tags], **quietly)  # what comes into sight with a value tells no change

    def _add_row(self, number: int, prefix: str) -> None:
        first = number == 1
        with gr.Group():
            with gr.Row():
                name = gr.Dropdown(
                    choices=self.choices(), value=NONE, label=f"Hypernetwork {number}", allow_custom_value=True, scale=3, min_width=180,
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
        name.do_not_save_to_config = True  # a web UI would offer yesterday's list (modules/ui_loadsave.py)
        self.conditions.append(ConditionInputs(self.host, self.catalog, number, prefix))
        self.names.append(name)
        self.inputs += [name, strength, start, end]

    def choices(self) -> list[str]:
        """What the dropdowns offer."""
        return [NONE, *self.catalog.names()]

    def refresh(self, *chosen: str) -> list[Any]:
        """The dropdowns after another look at the folder; what is gone is no longer chosen."""
        self.catalog.refresh()
        choices = self.choices()
        return [gr.update(choices=choices, value=name if name in choices else NONE) for name in chosen]

    def select(self, name: str, *chosen: str) -> list[Any]:
        """The dropdowns with `name` in the first row; the others stay."""
        self.catalog.refresh()
        return [gr.update(choices=self.choices(), value=value) for value in [name, *chosen[1:]]]

    def active(self, values: Sequence[Any]) -> list[ActiveNetwork]:
        """The networks of rows with a name, from the values of `inputs`, which may end before the conditions. Raises `HypernetworkError` for
        a start behind its end, and where a condition is still to be given."""
        width, unsaid = len(self.conditions[0].inputs), ConditionInputs.values(None)
        rows, conditions = _parts(values[: 4 * ROWS], 4), _parts(values[4 * ROWS :], width)
        return [
            ActiveNetwork(name.strip(), strength=float(strength), start=float(start), end=float(end), **ConditionInputs.chosen(condition))
            for (name, strength, start, end), condition in zip_longest(rows, conditions, fillvalue=unsaid)
            if name and name.strip() and name != NONE
        ]

    def values(self, active: Sequence[ActiveNetwork]) -> list[Any]:
        """What `inputs` show for these networks; rows beyond `ROWS` are left out."""
        shown: list[ActiveNetwork | None] = [*active[:ROWS], *[None] * (ROWS - len(active))]
        rows = [[NONE, 1.0, 0.0, 1.0] if one is None else [one.name, one.strength, one.start, one.end] for one in shown]
        return [value for part in [*rows, *map(ConditionInputs.values, shown)] for value in part]

    def write_tags(self, *values: Any) -> str:
        """The rows as tags; empty while a row is not valid."""
        try:
            return " ".join(tag(active) for active in self.active(values))
        except HypernetworkError:
            return ""


class GenerationPanel:
    """The rows in a web UI, folded up beside its other scripts, with a choice for hires fix. `prefix` tells txt2img's from img2img's."""

    def __init__(
        self, host: Host, catalog: Catalog, prefix: str, passes: Sequence[str], is_img2img: bool = False, open: bool = False
    ) -> None:
        with gr.Accordion("Hypernetworks", open=open, elem_id=f"{prefix}panel"):
            self.rows = NetworkRows(host, catalog, prefix)
            self.passes = gr.Radio(
                choices=list(passes), value=passes[0], label="With hires fix, act in", visible=not is_img2img, elem_id=f"{prefix}passes"
            )
        self.inputs = [*self.rows.inputs, self.passes]

    def chosen(self, values: Sequence[Any]) -> tuple[list[ActiveNetwork], str]:
        """Networks and passes, from the values of `inputs`. Raises as `NetworkRows.active` does."""
        *rows, passes = values
        return self.rows.active(rows), passes

    def infotext_fields(self, read_panel: ReadPanel) -> list[tuple[gr.components.Component, Callable[[Mapping[str, Any]], Any]]]:
        """For the web UI's pasting: each input with a function from the infotext to its value; None leaves the input as it is."""

        def value(index: int, infotext: Mapping[str, Any]) -> Any:
            found = read_panel(infotext)
            return None if found is None else self.rows.values(found[0])[index]

        def passes(infotext: Mapping[str, Any]) -> Any:
            found = read_panel(infotext)
            return None if found is None else found[1]

        return [*((one, partial(value, index)) for index, one in enumerate(self.rows.inputs)), (self.passes, passes)]


def _parts(values: Sequence[Any], width: int) -> list[Sequence[Any]]:
    return [values[index : index + width] for index in range(0, len(values), width)]
