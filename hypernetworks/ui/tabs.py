"""The pages as a web UI takes them: blocks of their own, without the web UI's model loaded."""
from __future__ import annotations

from typing import Any

import gradio as gr

from ..host import Host
from ..jobs import Jobs
from . import compatibility
from .library_tab import LibraryTab
from .train_tab import TrainTab


def build_train_tab(host: Host, jobs: Jobs, try_script: str) -> gr.Blocks:
    """The tab "Train Hypernetwork". `try_script` is a JavaScript function from the new network's name: the web UI's way to where it draws."""
    with gr.Blocks(analytics_enabled=False) as page:
        tab = TrainTab(host, jobs)
        tab.try_button.click(None, [tab.trained_name], None, **compatibility.script(try_script))
    return page


def build_library_tab(host: Host, library: Any, jobs: Jobs) -> gr.Blocks:
    """The tab with all files."""
    with gr.Blocks(analytics_enabled=False) as page:
        LibraryTab(host, library, jobs)
    return page
