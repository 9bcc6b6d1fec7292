"""Inputs for the options of a configuration class, built from their one declaration in `config.py`."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gradio as gr

from ..config import Option, options

MANY_LINES = ("caption_template", "preview_prompts", "description")


class OptionsForm:
    """Builds inputs where it is told to, and reads all of them at once. They show `values` first, or the defaults where those say nothing.

    `prefix` begins every element's id.
    """

    def __init__(self, config: type, prefix: str = "hypernetworks_option_", values: Mapping[str, Any] | None = None) -> None:
        self.options, self.prefix, self._at_first = options(config), prefix, dict(values or {})
        self.inputs: dict[str, gr.components.Component] = {}

    def add(self, *names: str, **changes: Any) -> list[gr.components.Component]:
        """Inputs for these options at the place where the page is being built; `changes` are arguments of the inputs."""
        added = []
        for name in names:
            (value,) = self.shown(self._at_first, [name])
            self.inputs[name] = _input(self.options[name], f"{self.prefix}{name}", {"value": value, **changes})
            self.inputs[name].do_not_save_to_config = True  # a web UI would keep today's defaults for good (modules/ui_loadsave.py)
            added.append(self.inputs[name])
        return added

    def add_group(self, group: str) -> None:
        """The options of a group that have no input yet: the basic ones, and the advanced ones to be unfolded."""
        left = [option for option in self.options.values() if option.group == group and option.name not in self.inputs]
        self._add_rows([option.name for option in left if not option.advanced])
        advanced = [option.name for option in left if option.advanced]
        if advanced:
            with gr.Accordion(f"More about {group.lower()}", open=False, elem_id=f"{self.prefix}more_{group.lower()}"):
                self._add_rows(advanced)

    def _add_rows(self, names: Sequence[str]) -> None:
        with gr.Row(elem_classes=["hypernetworks-options"]):  # one that wraps: rows of two are so many more parts for a page to begin with
            self.add(*names, min_width=200)

    def values(self, raw: Iterable[Any]) -> dict[str, Any]:
        """Option values from the inputs' values, in the order of `inputs`; an emptied input counts as the option's default."""
        given = dict(zip(self.inputs, raw, strict=True))
        return {name: self.options[name].default if value is None else value for name, value in given.items()}

    def shown(self, values: Mapping[str, Any], names: Iterable[str]) -> list[Any]:
        """What the inputs of these options display for `values`, or for the defaults where those say nothing."""
        return [_shown(self.options[name], values.get(name, self.options[name].default)) for name in names]


def _input(option: Option, elem_id: str, changes: dict[str, Any]) -> gr.components.Component:
    about = {"label": option.label, "info": option.help, "elem_id": elem_id, **changes}
    if option.kind is bool:
        return gr.Checkbox(**about)
    if option.kind is tuple and option.choices:
        return gr.CheckboxGroup(choices=list(option.choices), **about)
    if option.choices:
        return gr.Dropdown(choices=list(option.choices), **about)
    if option.kind is float and option.maximum in (0.5, 1):  # a share; others may need more than two digits
        return gr.Slider(minimum=option.minimum, maximum=option.maximum, step=0.01, **about)
    if option.kind in (int, float):
        return gr.Number(precision=0 if option.kind is int else None, **about)
    return gr.Textbox(lines=2 if option.name in MANY_LINES else 1, **about)


def _shown(option: Option, value: Any) -> Any:
    """A list as text with commas, unless it is one of choices to tick."""
    if option.kind is tuple:
        return list(value) if option.choices else ", ".join(f"{part:g}" if isinstance(part, float) else str(part) for part in value)
    return value
