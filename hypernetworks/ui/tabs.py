"""The pages as a web UI takes them: each is built where the web UI puts it, without the web UI's model loaded."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from ..host import Host
from ..jobs import Jobs
from . import compatibility
from .library_tab import LibraryTab
from .markup import note
from .train_tab import TrainTab

Report = Callable[[str], None]


class Page:
    """What a web UI asks of a tab's blocks: `render` within its own page, then `children`.

    Blocks of our own would each build a FastAPI application that never answers, which takes longer than all components of a tab
    (gradio/blocks.py, `Blocks.__exit__`). The web UI calls `render` without a net, so an error becomes the page's only content.
    """

    def __init__(self, build: Callable[[], None], report: Report) -> None:
        """`build` makes the components in the page that is open; `report` brings a sentence and the exception at hand to the console."""
        self.build, self.report = build, report
        self.children: list[Any] = []  # for the web UI's saved values of components (modules/ui_loadsave.py, add_block)

    def render(self) -> None:
        """Builds the page in the web UI's (modules/ui.py, create_ui)."""
        with gr.Column() as column:
            try:
                self.build()
            except Exception as problem:
                self.report("A tab of the hypernetworks extension could not be built.")
                gr.HTML(note(f"This tab could not be built ({problem}); the console says more."))
        self.children = column.children


def train_page(host: Host, jobs: Jobs, try_script: str, report: Report) -> Page:
    """The tab "Train Hypernetwork". `try_script` is a JavaScript function from the new network's name: the web UI's way to where it draws."""

    def build() -> None:
        tab = TrainTab(host, jobs)
        tab.try_button.click(None, [tab.trained_name], None, **compatibility.script(try_script))

    return Page(build, report)


def library_page(host: Host, library: Any, jobs: Jobs, report: Report) -> Page:
    """The tab with all files."""
    return Page(lambda: LibraryTab(host, library, jobs), report)
