"""Step 1 of training: which pictures, and whether they and their captions are as they should be."""
from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ..access import client_folder
from ..captioning import captionable, write_captions
from ..dataset import Dataset
from ..errors import DatasetError, HypernetworkError
from ..files import check_name
from ..groups import read_groups
from ..host import Host
from ..repeats import read_pictures
from ..uploads import Upload, safe_stem, store
from . import compatibility
from .dataset_check import read_edits, report, save_captions
from .markup import note, plural
from .options_form import OptionsForm

HERE = {"label": "Folder on this computer", "info": "Its full path.", "placeholder": "/home/me/pictures/my style"}
SENT = {"label": "Folder of pictures that were dropped in", "info": "Its name. Other folders of the server can be allowed in its settings.", "placeholder": ""}
EDITS_FIRST = "(...values) => window.hypernetworks ? window.hypernetworks.withEdits(values) : values"
"""Puts the captions edited on the page into an event's first input."""
UNLESS_NAMED = "(proposed, name) => (name || '').trim() ? name : proposed"


class PicturesStep:
    """Folder or dropped-in files, the check, captions to edit and, where the host describes pictures, to be written by it. Build it within
    the page, then `wire` it to the form's inputs."""

    def __init__(self, host: Host, form: OptionsForm) -> None:
        self.host, self.form = host, form
        self._stopped = threading.Event()
        gr.HTML(
            "<h3>1 · Pictures</h3><p>Some ten to fifty pictures of one style or one subject, each with a short caption of what it shows: "
            "in a text file of the same name (<code>01.png</code>, <code>01.txt</code>), or as the file's name (<code>red barn.jpg</code>). "
            "For a generator, many styles or subjects: a folder of such folders, one for each.</p>"
        )
        about = HERE if host.client_paths else SENT
        self.folder = form.add("dataset", **about)[0]
        self.dropped = gr.File(
            label="Or drop pictures here, or a zip of them", file_count="multiple", file_types=["image", ".txt", ".zip"],
            height=150, elem_id="hypernetworks_dropped",
        )  # fmt: skip
        self.drop_note = gr.HTML(elem_id="hypernetworks_drop_note", elem_classes=["hypernetworks-notes"])
        self.shared_caption = form.add("shared_caption", placeholder="for example: a watercolour painting")[0]
        self.check_button = gr.Button("Check pictures", elem_id="hypernetworks_check")
        self.report = gr.HTML(
            note("The check shows each picture with its caption to edit, the sizes they are trained at, and what is odd.", "hint"),
            elem_id="hypernetworks_report",
        )
        self.save_button = gr.Button("Save captions", visible=False, elem_id="hypernetworks_save_captions")
        self.write_button = gr.Button("Write captions", visible=False, elem_id="hypernetworks_write_captions")
        self.stop_button = gr.Button("Stop writing captions", visible=False, elem_id="hypernetworks_stop_captions")
        with gr.Column(elem_id="hypernetworks_hidden_edits"):
            self.edits = gr.Textbox(elem_id="hypernetworks_edits", show_label=False)
            self.proposed = gr.Textbox(elem_id="hypernetworks_proposed_name", show_label=False)

    def wire(self) -> None:
        """Connects the buttons, once all inputs exist."""
        inputs = self.form.inputs
        about = [self.folder, self.shared_caption, inputs["resolution"], inputs["bucket_step"], inputs["kind"]]
        kept = self.dropped.upload(self.drop, [self.dropped], [self.folder, self.drop_note])
        for event in (self.check_button.click, self.folder.submit, kept.then):
            checked = event(self.check, about, [self.report, self.save_button, self.write_button, self.proposed])
            # in the page, since a name may have been typed meanwhile
            checked.then(None, [self.proposed, inputs["name"]], [inputs["name"]], **compatibility.script(UNLESS_NAMED))
        edits_first = compatibility.script(EDITS_FIRST)
        self.save_button.click(self.save, [self.edits, *about], [self.report, self.write_button], **edits_first)
        writing = [self.write_button, self.stop_button]
        begun = self.write_button.click(self.begin_captions, None, writing, queue=False, show_progress="hidden")
        begun.then(self.write_captions, [self.edits, *about], [self.report, *writing], **edits_first)
        self.stop_button.click(self.stop_captions, None, None, queue=False)

    def check(self, folder: str, shared_caption: str, resolution: Any, bucket_step: Any, kind: str) -> list[Any]:
        """The report, whether captions can be saved and written, and a name for the network: the folder's."""
        try:
            html, offer = self._report(folder, shared_caption, resolution, bucket_step, kind)
        except HypernetworkError as error:
            return [note(str(error)), gr.update(visible=False), gr.update(visible=False), ""]
        return [html, gr.update(visible=True), offer, _proposed_name(folder)]

    def drop(self, files: Any) -> list[Any]:
        """Keeps files that were dropped in, in a folder of their own: its path, and what could not be kept."""
        try:
            folder, upload = keep(compatibility.uploaded(files), self.host.folders.pictures)
        except HypernetworkError as error:
            return [gr.update(), note(str(error))]
        left_out = "".join(note(f"{name} was left out: {reason}.", "warning") for name, reason in upload.left_out)
        return [str(folder) if self.host.client_paths else folder.name, left_out]

    def save(self, edits: str, *about: Any) -> list[Any]:
        """Writes edited captions, and shows the pictures anew."""
        try:
            saved = self.save_edits(edits, about[-1])
            html, offer = self._report(*about)
        except HypernetworkError as error:
            return [note(str(error)), gr.update()]
        words = f"{plural(saved, 'caption')} saved." if saved else "No caption was changed."
        return [note(words, "good") + html, offer]

    def begin_captions(self) -> list[Any]:
        """The button to stop in the place of the one that was clicked."""
        self._stopped.clear()
        return [gr.update(visible=False), gr.update(visible=True)]

    def write_captions(
        self, edits: str, folder: str, shared_caption: str, resolution: Any, bucket_step: Any, kind: str,
        progress: Any = gr.Progress(),  # noqa: B008 (gradio finds it by this default)
    ) -> list[Any]:  # fmt: skip
        """Has the host describe every picture without a caption, after the captions edited on the page; shows the pictures anew."""
        try:
            self.save_edits(edits, kind)
            words = self._write_captions(folder, kind, progress)
            html, offer = self._report(folder, shared_caption, resolution, bucket_step, kind)
        except HypernetworkError as error:
            words, html, offer = "", note(str(error)), gr.update(visible=False)
        return [words + html, offer, gr.update(visible=False)]

    def stop_captions(self) -> None:
        """Ends the writing after the picture at hand."""
        self._stopped.set()

    def _write_captions(self, folder: str, kind: str, progress: Any) -> str:
        """What came of it, as notes."""
        captioner, pictures = self.host.captioner, captionable(self._read(folder, kind).pictures)
        if captioner is None or not pictures:
            return note("There is nothing to write captions with or for.")
        written, failure = 0, ""
        progress((0, len(pictures)), desc="Writing captions; the first one may wait for a download")
        try:
            with self.host.exclusive():
                for done, total, caption in write_captions(pictures, captioner):
                    written += caption is not None
                    progress((done, total), desc="Writing captions")
                    if self.host.report("Writing captions", done, total) or self._stopped.is_set():
                        break
        except HypernetworkError as error:
            failure = note(str(error))
        words = f"{written} of {plural(len(pictures), 'caption')} written. Read them through: what describes pictures may err."
        return failure + (note(words, "good") if written else "")

    def save_edits(self, text: str, kind: str) -> int:
        """Writes captions that the page's script sent, of the pictures for a network of that kind; gives how many."""
        edits = read_edits(text)
        return len(save_captions(self._read(edits[0], kind), edits[1])) if edits else 0

    def path(self, folder: str | Path) -> Path:
        """The folder that is meant. Raises `DatasetError` for none, `AccessRefused` for one that this page may not name."""
        if not str(folder).strip():
            raise DatasetError("Give a folder of pictures, or drop pictures in.")
        return client_folder(str(folder).strip(), self.host.folders, self.host.client_paths)

    def _read(self, folder: str | Path, kind: str, **about: Any) -> Dataset:
        read = read_groups if kind == "generator" else read_pictures
        return read(self.path(folder), cache=self.host.folders.data / "latents", **about)

    def _report(self, folder: str, shared_caption: str, resolution: Any, bucket_step: Any, kind: str) -> tuple[str, Any]:
        """The check, and the button that has captions written: shown where the host can and pictures need it."""
        given = {"resolution": resolution, "bucket_step": bucket_step, "shared_caption": shared_caption}
        values = {name: self.form.options[name].check(value) for name, value in given.items() if value is not None}
        model, caption = self.host.model, values.get("shared_caption", "")
        side = values.get("resolution") or model.resolution
        dataset = self._read(folder, kind, resolution=side, shared_caption=caption, check=True)
        html = report(Path(folder.strip()), dataset, side, values.get("bucket_step", 64), model.latent_factor, caption)
        bare = len(captionable(dataset.pictures)) if self.host.captioner else 0
        return html, gr.update(visible=bare > 0, value=f"Write captions for {plural(bare, 'picture')}")


def keep(files: Sequence[Path], pictures: Path) -> tuple[Path, Upload]:
    """Stores pictures, captions and what is in zips in a new folder below `pictures`, named after the zip where there is one.

    Gives the folder and what came of the files. Raises `DatasetError` where nothing can be taken.
    """
    archives = [path.stem for path in files if path.suffix.lower() == ".zip"]
    into = _free(pictures, safe_stem(archives[0]) if archives else "pictures")
    return into, store(files, into)


def _free(pictures: Path, name: str) -> Path:
    into, number = pictures / name, 1
    while into.exists():
        number += 1
        into = pictures / f"{name}-{number}"
    return into


def _proposed_name(folder: str) -> str:
    """The folder's own name, if a network can be called so."""
    name = Path(folder.strip()).name
    try:
        return check_name(name)
    except HypernetworkError:
        return ""
