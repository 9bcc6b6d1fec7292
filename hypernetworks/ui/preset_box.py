"""The choice of a preset, which sets the options of the form, and the user's own presets: saved from the form, replaced, deleted."""
from __future__ import annotations

from typing import Any

import gradio as gr

from ..config import TrainingConfig, read
from ..errors import HypernetworkError
from ..host import Host
from ..presets import PRESETS
from ..user_presets import OWN, UserPresets
from .markup import escape, note
from .options_form import OptionsForm

FIRST = next(iter(PRESETS))  # is chosen, and its values are shown, in a new page


class PresetBox:
    """Call `choice` and `own` where the page is to have them, then `wire`."""

    def __init__(self, host: Host, form: OptionsForm) -> None:
        self.host, self.form = host, form

    @property
    def presets(self) -> UserPresets:
        """Where they are now: a web UI's data folder is a setting."""
        return UserPresets(self.host.folders)

    def choice(self) -> None:
        """The dropdown."""
        self.preset = gr.Dropdown(
            choices=list(self.presets.all()), value=FIRST, label="Preset", allow_custom_value=True, min_width=200, elem_id="hypernetworks_preset",
            info="What is to be learned; sets the options below.",
        )  # fmt: skip

    def own(self) -> None:
        """What the chosen one is for, and the fields to save and delete one's own."""
        self.help = gr.HTML(_help(PRESETS[FIRST].help), elem_id="hypernetworks_preset_help")
        with gr.Accordion("Presets of your own", open=False, elem_id="hypernetworks_own_presets"):
            with gr.Row(equal_height=True):
                self.name = gr.Textbox(
                    label="Name", info="The options as they are below are saved under it, but for names, folders, prompts and the seed.", scale=3,
                    min_width=200, elem_id="hypernetworks_preset_name",
                )  # fmt: skip
                self.replace = gr.Checkbox(label="Replace one of that name", scale=1, min_width=160, elem_id="hypernetworks_preset_replace")
            with gr.Row():
                self.save_button = gr.Button("Save as preset", size="sm", min_width=120, elem_id="hypernetworks_preset_save")
                self.delete_button = gr.Button("Delete the chosen one", size="sm", min_width=120, elem_id="hypernetworks_preset_delete")
        for part in (self.preset, self.name, self.replace):
            part.do_not_save_to_config = True  # a web UI would keep the choice without the options that it sets (modules/ui_loadsave.py)

    def wire(self) -> None:
        """Connects them, once the form has all its inputs."""
        silent, shown = {"show_progress": "hidden"}, [self.preset, self.help]
        self.preset.change(self.choose, [self.preset], [self.help, *[self.form.inputs[name] for name in self.names()]], **silent)
        self.save_button.click(self.save, [self.name, self.replace, *self.form.inputs.values()], [*shown, self.replace], **silent)
        self.delete_button.click(self.delete, [self.preset], shown, **silent)

    def names(self) -> list[str]:
        """The options that a preset may touch."""
        return [name for name in self.form.inputs if name not in OWN]

    def refreshed(self) -> Any:
        """The dropdown with the presets of another look at the disk."""
        return gr.update(choices=list(self.presets.all()))

    def choose(self, preset: str) -> list[Any]:
        """Sets every option that a preset may touch, to the preset's value or the default."""
        found = self.presets.all().get(preset)
        if found is None:  # typed, or deleted meanwhile
            return [gr.update()] * (1 + len(self.names()))
        return [_help(found.help), *self.form.shown(found.values, self.names())]

    def save(self, name: str, replace: bool, *raw: Any) -> list[Any]:
        """Saves the form's options as a preset, which is then the chosen one."""
        try:
            saved = self.presets.save(name or "", read(TrainingConfig, self.form.values(raw)), overwrite=replace)
        except HypernetworkError as error:
            return [gr.update(), note(str(error)), gr.update()]
        presets = self.presets.all()
        return [gr.update(choices=list(presets), value=saved), note(f"{saved} is saved.", "good") + _help(presets[saved].help), False]

    def delete(self, name: str) -> list[Any]:
        """Deletes the chosen preset; the options stay as they are."""
        try:
            self.presets.delete(name or "")
        except HypernetworkError as error:
            return [gr.update(), note(str(error))]
        return [gr.update(choices=list(self.presets.all()), value=None), note(f"{name} is deleted. The options below stay as they are.", "good")]


def _help(text: str) -> str:
    return f'<p class="hypernetworks-preset">{escape(text)}</p>'
