"""What can be done with a generator in the library: export what it makes as a LoRA file, as it is or refined on a few pictures."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from ..access import client_folder, picture_folders
from ..config import ExportConfig, RefineConfig, options, read
from ..errors import HypernetworkError
from ..host import Host
from ..jobs import Job, Jobs
from ..library import Library
from ..prompt import ActiveNetwork
from .condition_inputs import ConditionInputs
from .markup import escape, note
from .result import lora_card

LOOK_EVERY = 0.5  # seconds between looks at a run


class ExportBox:
    """Build it within a page. `offered` are the components that `offer` fills for the network that is opened."""

    def __init__(self, host: Host, library: Library, jobs: Jobs) -> None:
        self.host, self.library, self.jobs = host, library, jobs
        prefix, known = "hypernetworks_library_", options(RefineConfig)
        with gr.Column(visible=False, elem_id=f"{prefix}export_box") as self.box:
            gr.HTML("<h4>Export as LoRA</h4>")
            self.conditions = ConditionInputs(host, library.catalog, "export", prefix, prompt=False)
            with gr.Row(equal_height=True):
                self.strength = gr.Slider(minimum=-2, maximum=2, step=0.05, value=1, label="Strength", info=known["strength"].help, elem_id=f"{prefix}export_strength")
                self.name = gr.Textbox(label=known["name"].label, info=known["name"].help, elem_id=f"{prefix}export_name")
            self.export_button = gr.Button("Export as LoRA", variant="primary", elem_id=f"{prefix}export")
            with gr.Accordion("Refine it on pictures first", open=False, elem_id=f"{prefix}refining"):
                with gr.Row(equal_height=True):
                    self.dataset = gr.Dropdown(
                        choices=[], value="", allow_custom_value=True, label="Pictures", info=known["dataset"].help, scale=3, min_width=180,
                        elem_id=f"{prefix}refine_dataset",
                    )  # fmt: skip
                    steps = known["max_steps"]
                    self.steps = gr.Slider(
                        minimum=steps.minimum, maximum=steps.maximum, step=1, value=steps.default, label=steps.label, scale=2, min_width=140,
                        elem_id=f"{prefix}refine_steps",
                    )  # fmt: skip
                self.refine_button = gr.Button("Refine and export", elem_id=f"{prefix}refine")
            self.result = gr.HTML(elem_id=f"{prefix}export_result", elem_classes=["hypernetworks-notes"])
        for part in (self.strength, self.name, self.dataset, self.steps):
            part.do_not_save_to_config = True

    def wire(self, selected: gr.components.Component) -> None:
        """Connects the buttons; `selected` holds the name of the network that is opened."""
        asked = [selected, self.name, self.strength, *self.conditions.inputs]
        self.export_button.click(self.export, asked, [self.result])
        self.refine_button.click(self.refine, [self.dataset, self.steps, *asked], [self.result], show_progress="hidden")

    @property
    def offered(self) -> list[Any]:
        """What `offer` fills."""
        return [self.box, self.dataset, self.result, *self.conditions.offered]

    def offer(self, name: str) -> list[Any]:
        """Values of `offered` for the network of that name: unseen unless it is a generator."""
        conditions = self.conditions.offer(name, *ConditionInputs.values(None))
        folders = gr.update(choices=picture_folders(self.host.folders))
        return [gr.update(visible=conditions[0]["visible"]), folders, "", *conditions]

    def export(self, generator: str, name: str, strength: float, *conditions: Any) -> str:
        """Writes the file, and tells where it is."""
        from ..exporting import export

        try:
            active = self._active(generator, strength, conditions)
            self.jobs.check_idle()
            with self.host.exclusive():
                made = export(self.host, self.library.catalog, active, name or "")
        except HypernetworkError as error:
            return note(str(error))
        return lora_card(made.path, made.notes)

    def refine(self, dataset: str, steps: float, generator: str, name: str, strength: float, *conditions: Any) -> Iterator[str]:
        """Trains on, and tells how far it is and where the file is. The run goes on without the page."""
        from ..refining import Refiner

        try:
            active = self._active(generator, strength, conditions)
            folder = client_folder((dataset or "").strip(), self.host.folders, self.host.client_paths)
            config = read(RefineConfig, {"generator": generator, "name": name or "", "dataset": str(folder), "max_steps": steps})
            refiner = Refiner(config, self.library.catalog, active)
            job = self.jobs.start(refiner.config, trainer=refiner)
        except HypernetworkError as error:
            yield note(str(error))
            return
        while not job.wait(LOOK_EVERY):
            yield _progress(job)
        yield note(job.error) if job.error else lora_card(job.path, job.warnings) if job.path else note("Cancelled; no file was written.", "warning")

    def _active(self, generator: str, strength: float, conditions: Sequence[Any]) -> ActiveNetwork:
        strength = read(ExportConfig, {"strength": strength}).strength
        return ActiveNetwork(generator, strength, **ConditionInputs.chosen(conditions))


def _progress(job: Job) -> str:
    at, last = job.position, job.last_step
    how = "begins" if at is None else at.message.lower() if at.kind == "preparing" else f"step {at.step} of {at.steps}"
    loss = f", loss {last.loss:.4f}" if last is not None and last.loss is not None else ""
    return f'<div class="hypernetworks-note" role="status">Refining: {escape(how)}{loss}. The training tab shows it too, and can stop it.</div>'
