"""The tab "Train Hypernetwork": pictures, a name, options, a button; then the run itself, and the file that comes out."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ..checkpoint import RunFolder
from ..config import TrainingConfig, read
from ..errors import ConfigError, HypernetworkError
from ..files import check_name
from ..host import Host
from ..jobs import Job, Jobs
from ..library import facts_of
from ..networks import steps_done
from ..presets import PRESETS
from ..resuming import options_to_resume
from . import compatibility, progress
from .markup import note
from .options_form import OptionsForm
from .pictures import EDITS_FIRST, PicturesStep
from .preset_box import FIRST, PresetBox
from .queue_box import QueueBox
from .result import can_be_pt, card, lora_card, write_pt
from .sweep_box import SweepBox

PREVIEWS = 24  # pictures in the gallery; older ones stay in the run's folder
ASK_TO_CANCEL = "() => [window.confirm('Cancel the training? What it learned since the last checkpoint is lost.')]"

RESUMING = "() => [window.hypernetworks ? window.hypernetworks.resuming() : '']"
SHOW_NOTE = "() => { window.hypernetworks?.show('note') }"


class TrainTab:
    """Build it within a page. The page's script clicks `poll_button` every second while a run is going on, and once when it loads.

    It also clicks `resume_button` for a network of the library whose training is to go on.

    `trained_name` takes the name of a network that has just been finished, `try_button` is there to be connected with whatever generates.
    """

    def __init__(self, host: Host, jobs: Jobs) -> None:
        self.host, self.jobs = host, jobs
        self.form = OptionsForm(TrainingConfig, values=PRESETS[FIRST].values)
        self.presets = PresetBox(host, self.form)
        with gr.Row(equal_height=False):
            with gr.Column(scale=6, min_width=440):
                self.pictures = PicturesStep(host, self.form)
                self._build_options()
                self._build_start()
            with gr.Column(scale=5, min_width=380, elem_id="hypernetworks_results"):
                self._build_results()
        self._wire()

    def _build_options(self) -> None:
        gr.HTML("<h3>2 · Name and options</h3><p>A name and a preset are enough; everything else has a value that works.</p>")
        with gr.Row():
            self.form.add("name", min_width=200)
            self.presets.choice()
        self.presets.own()
        with gr.Row():
            self.form.add("max_steps", "batch_size", min_width=200)
        for group in dict.fromkeys(option.group for option in self.form.options.values()):
            with gr.Accordion(f"Options · {group}", open=False, elem_id=f"hypernetworks_group_{group.lower()}"):
                self.form.add_group(group)

    def _build_start(self) -> None:
        gr.HTML("<h3>3 · Train</h3>")
        self.note = gr.HTML(elem_id="hypernetworks_note", elem_classes=["hypernetworks-notes"])
        with gr.Row(visible=False, elem_id="hypernetworks_taken") as self.taken:
            self.continue_button = gr.Button("Continue training", min_width=120, elem_id="hypernetworks_continue")
            self.replace_button = gr.Button("Replace it", variant="stop", min_width=120, elem_id="hypernetworks_replace")
            self.keep_button = gr.Button("Neither", min_width=120, elem_id="hypernetworks_keep")
        with gr.Row():
            self.train_button = gr.Button("Train", variant="primary", min_width=120, elem_id="hypernetworks_train")
            self.queue_button = gr.Button("Add to queue", min_width=120, elem_id="hypernetworks_add_to_queue")
            self.stop_button = gr.Button("Stop and save", interactive=False, min_width=120, elem_id="hypernetworks_stop")
            self.cancel_button = gr.Button("Cancel", interactive=False, min_width=120, elem_id="hypernetworks_cancel")
        self.queue = QueueBox(self.jobs, self.form)
        self.sweep = SweepBox(self.host, self.jobs)

    def _build_results(self) -> None:
        self.status = gr.HTML(progress.nothing(), elem_id="hypernetworks_status")
        self.card = gr.HTML(elem_id="hypernetworks_card", elem_classes=["hypernetworks-notes"])
        with gr.Row(visible=False, elem_id="hypernetworks_result") as self.result:
            self.try_button = gr.Button("Try it", variant="primary", min_width=120, elem_id="hypernetworks_try")
            self.pt_button = gr.Button("Make an A1111 .pt", min_width=120, elem_id="hypernetworks_make_pt")
        self.downloads = gr.File(label="Downloads", interactive=False, visible=False, file_count="multiple", elem_id="hypernetworks_downloads")
        self.result_note = gr.HTML(elem_id="hypernetworks_result_note", elem_classes=["hypernetworks-notes"])
        self.previews = gr.Gallery(
            label="Previews, newest first", columns=3, height=340, object_fit="contain", visible=False, elem_id="hypernetworks_previews"
        )
        with gr.Column(elem_id="hypernetworks_hidden"):
            self.poll_button = gr.Button("Refresh", elem_id="hypernetworks_poll")
            self.trained_name = gr.Textbox(elem_id="hypernetworks_trained_name", show_label=False)
            self.seen = gr.Textbox(elem_id="hypernetworks_seen", show_label=False)
            self.confirmed = gr.Checkbox(elem_id="hypernetworks_confirmed", show_label=False)
            self.resume_button = gr.Button("Resume", elem_id="hypernetworks_resume")
            self.resuming = gr.Textbox(elem_id="hypernetworks_resuming", show_label=False)

    def _wire(self) -> None:
        self.pictures.wire()
        inputs = [self.pictures.edits, *self.form.inputs.values()]
        asked = [self.note, self.taken]
        for button, start in (
            (self.train_button, self.train), (self.queue_button, self.enqueue), (self.continue_button, self.go_on), (self.replace_button, self.replace),
        ):  # fmt: skip
            begun = button.click(start, inputs, asked, **compatibility.script(EDITS_FIRST))
            begun.then(self.poll, [self.seen], self._polled, show_progress="hidden")
        self.keep_button.click(lambda: ["", gr.update(visible=False)], None, asked)
        self.stop_button.click(self.stop, None, [self.status], show_progress="hidden")
        self.cancel_button.click(self.cancel, [self.confirmed], [self.status], show_progress="hidden", **compatibility.script(ASK_TO_CANCEL))
        self.poll_button.click(self.poll, [self.seen], self._polled, queue=False, show_progress="hidden")
        self.pt_button.click(self.make_pt, None, [self.downloads, self.result_note])
        filled = [self.note, self.taken, *self.form.inputs.values()]
        resumed = self.resume_button.click(self.resume, [self.resuming], filled, show_progress="hidden", **compatibility.script(RESUMING))
        resumed.then(None, None, None, **compatibility.script(SHOW_NOTE))
        self.presets.wire()
        self.queue.wire(self.note)
        swept = self.sweep.button.click(self.add_sweep, [*inputs, self.sweep.lines], [self.note], **compatibility.script(EDITS_FIRST))
        swept.then(self.poll, [self.seen], self._polled, show_progress="hidden")

    @property
    def _polled(self) -> list[Any]:
        buttons = [self.train_button, self.stop_button, self.cancel_button]
        results = [self.previews, self.card, self.result, self.pt_button, self.downloads, self.result_note, self.trained_name]
        return [self.status, self.seen, self.presets.preset, *self.queue.shown, self.sweep.table, *buttons, *results]

    def train(self, edits: str, *raw: Any) -> list[Any]:
        """Starts a run, or asks what is to happen to the one of that name."""
        return self._begin(self.jobs.start, edits, raw)

    def enqueue(self, edits: str, *raw: Any) -> list[Any]:
        """Puts a run into the queue, or asks what is to happen to the one of that name."""
        return self._begin(self.jobs.add, edits, raw)

    def add_sweep(self, edits: str, *raw: Any) -> str:
        """Puts the runs of a sweep into the queue; its lines are the last value."""
        try:
            return self.sweep.add(self._config(edits, raw[:-1]), raw[-1], self._taken)
        except HypernetworkError as error:
            return note(str(error))

    def _begin(self, begin: Callable[[TrainingConfig], Any], edits: str, raw: tuple[Any, ...]) -> list[Any]:
        try:
            config = self._config(edits, raw)
            taken = self._taken(config)
            if taken:
                return [note(taken, "warning"), gr.update(visible=True)]
            begin(config)
        except HypernetworkError as error:
            return [note(str(error)), gr.update(visible=False)]
        return ["", gr.update(visible=False)]

    def go_on(self, edits: str, *raw: Any) -> list[Any]:
        """Continues the run of that name, in its turn where another one is going on."""
        return self._start_taken(edits, raw, resume=True)

    def replace(self, edits: str, *raw: Any) -> list[Any]:
        """Trains anew; the file of that name is replaced at the end."""
        return self._start_taken(edits, raw, overwrite=True)

    def resume(self, name: str) -> list[Any]:
        """Notes on what to do, and the form filled for going on with the training of the network of that name."""
        try:
            values, told = options_to_resume(self.host.folders, name)
        except HypernetworkError as error:
            return [note(str(error)), gr.update(visible=False), *[gr.update()] * len(self.form.inputs)]
        return ["".join(note(text, "hint") for text in told), gr.update(visible=False), *self.form.shown(values, self.form.inputs)]

    def _start_taken(self, edits: str, raw: tuple[Any, ...], **how: bool) -> list[Any]:
        try:
            config = self._config(edits, raw)
            if how.get("resume"):
                self._check_steps_left(config)
            busy = self.jobs.current is not None and self.jobs.current.running
            (self.jobs.add if busy else self.jobs.start)(config, **how)
        except HypernetworkError as error:
            return [note(str(error)), gr.update()]
        return ["", gr.update(visible=False)]

    def _config(self, edits: str, raw: tuple[Any, ...]) -> TrainingConfig:
        values = self.form.values(raw)
        values["name"], values["dataset"] = values["name"].strip(), values["dataset"].strip()
        if not values["dataset"]:
            raise ConfigError("Choose the pictures first: give a folder, or drop pictures in (step 1).")
        check_name(values["name"])
        values["dataset"] = str(self.pictures.path(values["dataset"]))
        if values["regularization"].strip():
            values["regularization"] = str(self.pictures.path(values["regularization"]))
        self.pictures.save_edits(edits, values["kind"])
        return read(TrainingConfig, values)

    def _taken(self, config: TrainingConfig) -> str:
        """What there is of that name already, as a question; empty where there is nothing."""
        name, file = config.name, self._file(config.name)
        if file.exists():
            return f"A hypernetwork named {name} exists already. Continue its training with these options, replace it, or choose another name?"
        if RunFolder(self.host.folders.runs, name).has_state:
            return f"A run named {name} was left before its end. Continue it, start anew in its place, or choose another name?"
        if config.also_pt and file.with_suffix(".pt").exists():
            return f"There is a file {name}.pt already, which is to be written too. Replace it, or choose another name?"
        return ""

    def _check_steps_left(self, config: TrainingConfig) -> None:
        """Raises `ConfigError` where the run has done all its steps: it would end at once."""
        file = self._file(config.name)
        if not file.exists() or not RunFolder(self.host.folders.runs, config.name).has_state:
            return
        done = steps_done(facts_of(file))
        if done >= config.max_steps:
            raise ConfigError(f"{config.name} has done its {done:,} steps. To go on, raise Steps (step 2), for example to {2 * done:,}.")

    def _file(self, name: str) -> Path:
        return self.host.folders.networks / f"{name}.safetensors"

    def stop(self) -> str:
        """Ends the run and saves."""
        job = self.jobs.current
        if job is not None and job.running:
            job.stop()
        return progress.status(job)

    def cancel(self, confirmed: bool) -> str:
        """Ends the run without saving, once the user has said so."""
        job = self.jobs.current
        if confirmed and job is not None and job.running:
            job.cancel()
        return progress.status(job)

    def poll(self, seen: str) -> list[Any]:
        """The run as it is now. What this page has shown before (`seen`) is not sent again, but for the status."""
        job = self.jobs.current
        state = progress.state_of(job)
        now = f"{self.jobs.queue.changes} " + (state if job is None else f"{job.number} {state} {len(job.previews)}")
        if now == seen:
            return [progress.status(job), *[gr.update()] * (len(self._polled) - 1)]
        running = state == "running"
        buttons = [gr.update(interactive=not running), gr.update(interactive=running), gr.update(interactive=running)]
        presets = gr.update() if seen else self.presets.refreshed()
        return [progress.status(job), now, presets, *self.queue.now(), self.sweep.now(), *buttons, _gallery(job), *self._result(job, running)]

    def _result(self, job: Job | None, running: bool) -> list[Any]:
        """Card, its buttons, downloads, a note beside them, and the name of the new network."""
        path = None if job is None or running else job.path
        if path is None or not path.exists():
            return ["", gr.update(visible=False), gr.update(), gr.update(visible=False), "", gr.update()]
        if path.parent == self.host.folders.loras:
            return [lora_card(path), gr.update(visible=False), gr.update(), gr.update(visible=True, value=[str(path)]), "", gr.update()]
        try:
            offers_pt, about = can_be_pt(facts_of(path)), card(path)
        except HypernetworkError as error:  # somebody has changed the file since
            return [note(str(error)), gr.update(visible=False), gr.update(), gr.update(visible=False), "", gr.update()]
        return [about, gr.update(visible=True), gr.update(visible=offers_pt), gr.update(visible=True, value=[str(path)]), "", path.stem]

    def make_pt(self) -> list[Any]:
        """Adds the network as A1111's `.pt` to the downloads, or says why there is none."""
        job = self.jobs.current
        path = job.path if job is not None else None
        if path is None:
            return [gr.update(), note("There is no finished run to make a file of.")]
        try:
            pt = write_pt(path, self.host.folders.data / "downloads")
        except HypernetworkError as error:
            return [gr.update(), note(str(error))]
        return [gr.update(value=[str(path), str(pt)]), note(f"{pt.name} is among the downloads; A1111 finds it in its folder models/hypernetworks.", "good")]


def _gallery(job: Job | None) -> Any:
    """The newest previews, as pictures in memory: a page may not be allowed to read files from everywhere."""
    if job is None:
        return gr.update(visible=False, value=[])
    with job.lock:
        newest = job.previews[: -PREVIEWS - 1 : -1]
    shown = []
    labelled = [(preview.path, f"step {preview.step:,}: {preview.prompt}".rstrip(": ")) for preview in newest]
    if newest and not job.running:
        labelled.insert(0, (newest[0].path.parent.parent / RunFolder.SHEET, "all of them: prompts by steps"))
    for path, label in labelled:
        try:
            with Image.open(path) as picture:
                shown.append((picture.convert("RGB"), label))
        except OSError:
            continue  # deleted since, or no sheet was asked for
    return gr.update(visible=bool(shown), value=shown)
