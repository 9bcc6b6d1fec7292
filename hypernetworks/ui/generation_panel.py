"""Which hypernetworks act on a picture: rows of name, strength, and from when to when. Web UIs show it beside the prompt."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gradio as gr

from ..catalog import Catalog
from ..errors import HypernetworkError
from ..prompt import ActiveNetwork, tag
from . import compatibility

ReadPanel = Callable[[Mapping[str, Any]], "tuple[list[ActiveNetwork], str] | None"]
"""From an infotext's labels and values to rows and passes; None where it says nothing about pictures."""

NONE = "None"
ROWS = 4


class NetworkRows:
    """Build it within a page. `prefix` begins every element's id, so that a page may have several."""

    def __init__(self, catalog: Catalog, prefix: str = "hypernetworks_") -> None:
        self.catalog = catalog
        self.names: list[gr.Dropdown] = []
        self.inputs: list[gr.components.Component] = []
        with gr.Group():
            self._add_row(1, prefix)
        self.refresh_button = gr.Button("Refresh list", size="sm", elem_id=f"{prefix}refresh")
        with gr.Accordion("More at once", open=False, elem_id=f"{prefix}more_networks"):
            for number in range(2, ROWS + 1):
                with gr.Group():
                    self._add_row(number, prefix)
        self.tags = gr.Textbox(
            label="Tag", info="The same in words: write it into a prompt instead, in any web UI with this extension.", interactive=False,
            elem_id=f"{prefix}tags", **compatibility.copy_button(),
        )  # fmt: skip
        self.refresh_button.click(self.refresh, self.names, self.names, queue=False)
        for component in self.inputs:
            component.change(self.write_tags, self.inputs, [self.tags], queue=False, show_progress="hidden")

    def _add_row(self, number: int, prefix: str) -> None:
        first = number == 1
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
            words = ["0 is the first sampling step, 0.5 the middle.", "1 is the last sampling step."] if first else [None, None]
            start = gr.Slider(value=0, label="From", info=words[0], elem_id=f"{prefix}start_{number}", **about)
            end = gr.Slider(value=1, label="To", info=words[1], elem_id=f"{prefix}end_{number}", **about)
        name.do_not_save_to_config = True  # a web UI would offer yesterday's list (modules/ui_loadsave.py)
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
        """The networks of rows with a name, from the values of `inputs`. Raises `HypernetworkError` for a start behind its end."""
        rows = [values[index : index + 4] for index in range(0, len(values), 4)]
        return [
            ActiveNetwork(name.strip(), strength=float(strength), start=float(start), end=float(end))
            for name, strength, start, end in rows
            if name and name.strip() and name != NONE
        ]

    def values(self, active: Sequence[ActiveNetwork]) -> list[Any]:
        """What `inputs` show for these networks; rows beyond `ROWS` are left out."""
        rows = [[one.name, one.strength, one.start, one.end] for one in active[:ROWS]]
        return [value for row in rows + [[NONE, 1.0, 0.0, 1.0]] * (ROWS - len(rows)) for value in row]

    def write_tags(self, *values: Any) -> str:
        """The rows as tags; empty while a row is not valid."""
        try:
            return " ".join(tag(active) for active in self.active(values))
        except HypernetworkError:
            return ""


class GenerationPanel:
    """The rows in a web UI, folded up beside its other scripts, with a choice for hires fix. `prefix` tells txt2img's from img2img's."""

    def __init__(self, catalog: Catalog, prefix: str, passes: Sequence[str], is_img2img: bool = False, open: bool = False) -> None:
        with gr.Accordion("Hypernetworks", open=open, elem_id=f"{prefix}panel"):
            self.rows = NetworkRows(catalog, prefix)
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
