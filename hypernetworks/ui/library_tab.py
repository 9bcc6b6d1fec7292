"""The tab "Library": the networks of the folder in a table, one of them opened, and what can be done with it."""
from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gradio as gr

from ..errors import ConfigError, HostBusy, HypernetworkError
from ..host import Host
from ..jobs import Jobs
from ..library import Library
from . import compatibility
from .comparison_box import ComparisonBox
from .export_box import ExportBox
from .library_details import can_be_resumed, panel
from .library_table import SORTINGS, Table
from .markup import note

PARTS = 4  # networks that can be merged at once
AVERAGE, CHAIN = "Average of the weights", "One after the other"
CHOSEN = "(clicked, selected) => [window.hypernetworks ? window.hypernetworks.chosen() : '', selected]"
SHOW_NOTE = "() => { window.hypernetworks?.show('library_note', 'nearest') }"
RESUME = "(name) => { window.hypernetworks?.resume(name) }"
ASK_TO_DELETE = (
    "(confirmed, name, ...rest) => [window.confirm(`Move ${name}, all files that belong to it and its training run to the trash?`), name, ...rest]"
)


class LibraryTab:
    """Build it within a page. The page's script presses "Refresh list" when the tab comes into sight, and opens the row that is clicked.

    "Continue training" is the script's too: it shows the training tab of the page and has it fill its form (`TrainTab.resume`). `changed` gets
    another value after every change of the folder, so that a page can refresh its lists of networks.
    """

    def __init__(self, host: Host, library: Library, jobs: Jobs) -> None:
        self.host, self.library, self.jobs = host, library, jobs
        self.rows = Table(library)
        with gr.Row(equal_height=False):
            with gr.Column(scale=7, min_width=480):
                self._build_table()
            with gr.Column(scale=5, min_width=380, elem_id="hypernetworks_library_opened"):
                self._build_details()
                self._build_merge()
                self.comparing = ComparisonBox(self.host)
        with gr.Column(elem_id="hypernetworks_library_hidden"):
            self.open_button = gr.Button("Open", elem_id="hypernetworks_library_open")
            self.clicked = gr.Textbox(elem_id="hypernetworks_library_clicked", show_label=False)
            self.selected = gr.Textbox(elem_id="hypernetworks_library_selected", show_label=False)
            self.changed = gr.Textbox(elem_id="hypernetworks_library_changed", show_label=False)
            self.confirmed = gr.Checkbox(elem_id="hypernetworks_library_confirmed", show_label=False)
        for part in (self.search, self.sorting, self.notes, self.new_name, *self.parts, self.how, self.merged_name, *self._hidden):
            part.do_not_save_to_config = True  # a web UI would keep today's values for good (modules/ui_loadsave.py)
        self._wire()

    def _build_table(self) -> None:
        with gr.Row(equal_height=True):
            self.search = gr.Textbox(
                label="Search", placeholder="name, kind or base model", scale=3, min_width=180, elem_id="hypernetworks_library_search"
            )
            self.sorting = gr.Dropdown(
                choices=list(SORTINGS), value=next(iter(SORTINGS)), label="Order", scale=2, min_width=140, elem_id="hypernetworks_library_sorting"
            )
            self.refresh_button = gr.Button("Refresh list", size="sm", scale=1, min_width=100, elem_id="hypernetworks_library_refresh")
        self.table = gr.HTML(note("The list is on its way …", "hint"), elem_id="hypernetworks_library_table")

    def _build_details(self) -> None:
        self.note = gr.HTML(
            note("Click a row to see what its file says and how its training went.", "hint"),
            elem_id="hypernetworks_library_note", elem_classes=["hypernetworks-notes"],
        )  # fmt: skip
        with gr.Column(visible=False, elem_id="hypernetworks_library_panel") as self.panel:
            with gr.Row():
                about = {"size": "sm", "min_width": 100}
                self.resume_button = gr.Button("Continue training", variant="primary", elem_id="hypernetworks_library_resume", **about)
                self.convert_button = gr.Button("Convert", elem_id="hypernetworks_library_convert", **about)
                self.add_button = gr.Button("Add to a merge", elem_id="hypernetworks_library_add", **about)
                self.delete_button = gr.Button("Delete", variant="stop", elem_id="hypernetworks_library_delete", **about)
            self.details = gr.HTML(elem_id="hypernetworks_library_details")
            self.exporting = ExportBox(self.host, self.library, self.jobs)
            self.notes = gr.Textbox(label="Notes", lines=3, placeholder="for whoever uses the file", elem_id="hypernetworks_library_notes")
            self.notes_button = gr.Button("Save notes", size="sm", elem_id="hypernetworks_library_save_notes")
            with gr.Row(equal_height=True):
                self.new_name = gr.Textbox(label="New name", scale=3, min_width=180, elem_id="hypernetworks_library_new_name")
                self.rename_button = gr.Button("Rename", size="sm", scale=1, min_width=100, elem_id="hypernetworks_library_rename")

    def _build_merge(self) -> None:
        self.parts: list[gr.components.Component] = []
        with gr.Accordion("Merge several into a new file", open=False, elem_id="hypernetworks_library_merging"):
            for number in range(1, PARTS + 1):
                with gr.Row():
                    about = {"scale": 3, "min_width": 180, "elem_id": f"hypernetworks_library_part_{number}"}
                    self.parts.append(gr.Textbox(label=f"Hypernetwork {number}", **about))
                    about = {"scale": 1, "min_width": 80, "elem_id": f"hypernetworks_library_weight_{number}"}
                    self.parts.append(gr.Number(label="Weight", value=1, **about))
            self.how = gr.Radio(
                choices=[AVERAGE, CHAIN], value=AVERAGE, label="How", elem_id="hypernetworks_library_how",
                info="An average needs the same structure and the same beginnings; 1 and 1 mean half and half. One after the other does what the "
                "tags of all do, each at its weight as strength, and needs networks without activation and layer norm.",
            )  # fmt: skip
            with gr.Row(equal_height=True):
                self.merged_name = gr.Textbox(label="Name of the new file", scale=3, min_width=180, elem_id="hypernetworks_library_merged_name")
                self.merge_button = gr.Button("Merge", size="sm", scale=1, min_width=100, elem_id="hypernetworks_library_merge")

    def _wire(self) -> None:
        silent = {"show_progress": "hidden"}
        self.exporting.wire(self.selected)
        self.comparing.wire(self.refresh_button)
        listing, opened, acted = [self.search, self.sorting, self.selected], self._opened, self._acted
        self.refresh_button.click(self.rows.refreshed, listing, [self.table], queue=False, **silent)
        for event in (self.search.change, self.sorting.change):
            event(self.rows.html, listing, [self.table], queue=False, **silent)
        self.resume_button.click(None, [self.selected], None, **compatibility.script(RESUME))
        compatibility.last_click(self.open_button, self.open, self.open_other, [self.clicked, self.selected], [self.note, *opened], CHOSEN)
        named = [self.selected, self.search, self.sorting]
        names = self.parts[::2]
        for said in (
            self.rename_button.click(self.rename, [self.new_name, *named], acted),
            self.notes_button.click(self.save_notes, [self.notes, *named], acted),
            self.convert_button.click(self.convert, named, acted),
            self.delete_button.click(self.delete, [self.confirmed, *named], acted, **compatibility.script(ASK_TO_DELETE)),
            self.add_button.click(self.add, [self.selected, *names], [self.note, *names], **silent),
            self.merge_button.click(self.merge, [self.merged_name, self.how, *named, *self.parts], acted),
        ):
            said.then(None, None, None, **compatibility.script(SHOW_NOTE))

    @property
    def _hidden(self) -> list[Any]:
        return [self.clicked, self.selected, self.changed, self.confirmed]

    @property
    def _opened(self) -> list[Any]:
        return [self.selected, self.panel, self.details, self.notes, self.new_name, self.convert_button, self.resume_button, *self.exporting.offered]

    @property
    def _acted(self) -> list[Any]:
        return [self.note, self.table, self.changed, *self._opened]

    def open_other(self, name: str, selected: str) -> list[Any]:
        """As `open`; nothing changes where the network is open already."""
        return [gr.update()] * (1 + len(self._opened)) if name == selected else self.open(name)

    def open(self, name: str, *_: str) -> list[Any]:
        """A note, and the details of the network of that name."""
        try:
            return ["", *self._details(name)]
        except HypernetworkError as error:
            return [note(str(error)), *[gr.update()] * len(self._opened)]

    def _details(self, name: str) -> list[Any]:
        """What is shown of a network, nothing for no name. Raises `HypernetworkError` where there is none of that name."""
        if not name:
            return ["", gr.update(visible=False), "", "", "", gr.update(), gr.update(), *self.exporting.offer("")]
        details = self.library.details(name)
        convert = gr.update(value=f"Convert to {self._other(name)}", interactive=details.entry.kind == "per width")
        resume = gr.update(interactive=can_be_resumed(details.entry, self.library.folders))
        return [name, gr.update(visible=True), panel(details), details.notes, details.entry.path.stem, convert, resume, *self.exporting.offer(name)]

    def _other(self, name: str) -> str:
        return ".safetensors" if self.library.catalog.path(name).suffix.lower() == ".pt" else ".pt"

    def rename(self, new: str, name: str, search: str, sorting: str) -> list[Any]:
        """Gives the network another name."""

        def act() -> tuple[str, str]:
            self._refuse_in_training(name)
            renamed = self.library.rename(name, new)
            return renamed, f"{name} is called {renamed} now."

        return self._act(act, search, sorting)

    def save_notes(self, text: str, name: str, search: str, sorting: str) -> list[Any]:
        """Keeps what is written about the network."""

        def act() -> tuple[str, str]:
            self._refuse_in_training(name)
            self.library.set_notes(name, text)
            return name, "The notes are saved."

        return self._act(act, search, sorting, reopen=False)

    def convert(self, name: str, search: str, sorting: str) -> list[Any]:
        """Writes the network in the other format."""
        return self._act(lambda: (name, f"{self.library.convert(name, self._other(name)).name} is beside it now."), search, sorting, reopen=False)

    def delete(self, confirmed: bool, name: str, search: str, sorting: str) -> list[Any]:
        """Moves the network to the trash, once the user has said so."""
        if not confirmed:
            return [gr.update()] * len(self._acted)

        def act() -> tuple[str, str]:
            self._refuse_in_training(name)
            return "", f"{name} is in the trash, from where you can move it back: {self.library.delete(name)}"

        return self._act(act, search, sorting)

    def add(self, name: str, *parts: str) -> list[Any]:
        """A note, and the names to be merged with this one in the first place that is free."""
        names = [(part or "").strip() for part in parts]
        if "" not in names:
            return [note(f"{len(names)} can be merged at once; make room by emptying a name."), *names]
        names[names.index("")] = name
        return [note(f"{name} is among those to be merged, below.", "good"), *names]

    def merge(self, new: str, how: str, name: str, search: str, sorting: str, *parts: Any) -> list[Any]:
        """Makes one network out of several, and opens it."""

        def act() -> tuple[str, str]:
            chosen = [(part.strip(), _weight(part, weight)) for part, weight in zip(parts[::2], parts[1::2], strict=True) if (part or "").strip()]
            merged = self.library.chain(chosen, new) if how == CHAIN else self.library.merge(chosen, new)
            return merged.stem, f"{merged.stem} is made of {', '.join(part for part, _ in chosen)}."

        return self._act(act, search, sorting)

    def _act(self, act: Callable[[], tuple[str, str]], search: str, sorting: str, reopen: bool = True) -> list[Any]:
        """Does something that gives a name and a sentence; an error is a sentence too, and nothing else changes. Unless that network is to be opened
        then, what is open stays: it may be another one by now, with notes that are still to be saved."""
        try:
            name, sentence = act()
            opened = self._details(name) if reopen else [gr.update()] * len(self._opened)
        except HypernetworkError as error:
            return [note(str(error)), *[gr.update()] * (len(self._acted) - 1)]
        return [note(sentence, "good"), self.rows.refreshed(search, sorting, name), str(time.monotonic_ns()), *opened]

    def _refuse_in_training(self, name: str) -> None:
        """Raises `HostBusy` for the network that is being trained: its run would lose its folder, or write over what was changed."""
        job = self.jobs.current
        if job is not None and job.running and job.config.name == self.library.catalog.path(name).stem:
            raise HostBusy(f"{name} is being trained: wait for the end of its training, or stop it.")


def _weight(name: str, weight: Any) -> float:
    if weight is None:
        raise ConfigError(f"{name} needs a weight, for example 1.")
    return float(weight)
