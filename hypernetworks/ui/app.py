"""The standalone app: the training tab, a tab to generate with and the library, in a page on this machine."""
from __future__ import annotations

import os
import socket
import time
import webbrowser
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # gradio reads it when it is imported

import gradio as gr  # noqa: E402

from ..catalog import Catalog  # noqa: E402
from ..errors import HypernetworkError  # noqa: E402
from ..host import Host  # noqa: E402
from ..jobs import Jobs  # noqa: E402
from ..library import Library  # noqa: E402
from ..session import Session  # noqa: E402
from . import compatibility  # noqa: E402
from .generate_tab import GenerateTab  # noqa: E402
from .generation_panel import NONE  # noqa: E402
from .library_tab import LibraryTab  # noqa: E402
from .markup import escape  # noqa: E402
from .train_tab import TrainTab  # noqa: E402

TITLE = "Hypernetworks"
STYLE = Path(__file__).with_name("style.css")
SCRIPT = Path(__file__).with_name("hypernetworks.js")
UNLESS_CHOSEN = f"(name, chosen) => chosen === '{NONE}' && name ? name : chosen"


def build(host: Host, jobs: Jobs) -> gr.Blocks:
    """The page. Loads the model, whose name and size it shows."""
    session = Session(Catalog(host.folders.networks))
    model = host.model
    with compatibility.page(TITLE, _style(), _script()) as demo:
        gr.HTML(
            f"<h2>Hypernetworks</h2><p>Model in use: <strong>{escape(model.name)}</strong> ({escape(model.family)}, {model.resolution} pixels)</p>",
            elem_id="hypernetworks_model",
        )
        with gr.Tabs(elem_id="hypernetworks_tabs") as tabs:
            with gr.Tab("Train Hypernetwork", id="train"):
                train = TrainTab(host, jobs)
            with gr.Tab("Generate", id="generate"):
                generate = GenerateTab(host, session)
            with gr.Tab("Library", id="library"):
                library = LibraryTab(host, Library(session.catalog, host.folders), jobs)
        rows = generate.rows
        # what was chosen meanwhile stays: a page learns late of a run that another one started
        train.trained_name.change(None, [train.trained_name, rows.names[0]], [rows.names[0]], **compatibility.script(UNLESS_CHOSEN))
        train.trained_name.change(rows.refresh, rows.names, rows.names, queue=False, show_progress="hidden")
        train.try_button.click(
            lambda name, *chosen: [gr.update(selected="generate"), _prompt_to_try(jobs), *rows.select(name, *chosen)],
            [train.trained_name, *rows.names],
            [tabs, generate.prompt, *rows.names],
        )
        library.changed.change(rows.refresh, rows.names, rows.names, queue=False, show_progress="hidden")
        demo.load(rows.refresh, rows.names, rows.names, queue=False)
    return demo


def launch(host: Host, port: int = 7861, open_browser: bool = True) -> None:
    """Answers at http://127.0.0.1:<port> until interrupted; a run that is going on then is stopped and saved.

    Raises `HypernetworkError` for a port in use, and what the host raises for its model.
    """
    check_port(port)
    for folder in (host.folders.networks, host.folders.pictures):
        folder.mkdir(parents=True, exist_ok=True)
    print("Loading the model ...", flush=True)
    jobs = Jobs(host)
    demo = build(host, jobs)
    folders = [str(folder) for folder in (host.folders.networks, host.folders.data)]
    address = compatibility.serve(demo, _style(), _script(), server_port=port, allowed_paths=folders)
    print(f"Ready: open {address} in a browser. Ctrl+C ends the app.", flush=True)
    if open_browser:
        webbrowser.open(address)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        _end(jobs)
    finally:
        demo.close(verbose=False)


def check_port(port: int) -> None:
    """Raises `HypernetworkError` where the port is taken or cannot be had."""
    with socket.socket() as probe:
        if os.name != "nt":  # where it would let two programs have one port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just left is free
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):  # taken or reserved; not a port at all
            raise HypernetworkError(
                f"Port {port} is in use by another program or cannot be used: choose another one, for example --port {_free_port()}."
            ) from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _end(jobs: Jobs) -> None:
    jobs.queue.hold()
    job = jobs.current
    if job is not None and job.running:
        print("\nStopping the training after this step and saving; press Ctrl+C again to end at once.", flush=True)
        job.stop()
        job.wait()


def _prompt_to_try(jobs: Jobs) -> Any:
    job = jobs.current
    return job.previews[-1].prompt if job is not None and job.previews else gr.update()


def _style() -> str:
    return STYLE.read_text(encoding="utf-8")


def _script() -> str:
    return SCRIPT.read_text(encoding="utf-8")
