"""All parts in a web UI, built once and handed out to its callbacks. `scripts/hypernetworks_script.py` is the table of what goes where."""
from __future__ import annotations

from typing import Any

from .catalog import Catalog
from .errors import HypernetworkError
from .hosts.generation import PASSES, Generation, Panel, read_panel
from .jobs import Jobs
from .library import Library
from .session import Session

TRAIN_TAB, LIBRARY_TAB = ("Train Hypernetwork", "hypernetworks_train_tab"), ("Hypernetworks", "hypernetworks_library_tab")


class Extension:
    """Lives as long as the web UI's process; "Reload UI" builds its pages anew but keeps a run that is going on."""

    def __init__(self, host: Any, web_ui: Any) -> None:
        """`host` implements `host.Host` on the web UI; `web_ui` is `hosts/parts.py`, what else is registered there."""
        self.host, self.web_ui = host, web_ui
        self.session = Session(Catalog(host.folders.networks), web_ui.layer_by_layer)
        self.library = Library(self.session.catalog, host.folders)
        self.jobs = Jobs(host)
        self.generation = Generation(host, self.session, web_ui.always_on)

    def before_ui(self) -> None:
        """Takes the built-in extra network's place, and adds cards and axes."""
        self.web_ui.register(self.generation, self.session.catalog)

    def settings(self) -> None:
        """A section among the web UI's settings."""
        self.web_ui.add_settings()

    def tabs(self) -> list[tuple[Any, str, str]]:
        """The pages, as `on_ui_tabs` wants them: (what renders, title, elem_id)."""
        from .ui.tabs import library_page, train_page

        report = self.web_ui.report
        train = train_page(self.host, self.jobs, self.web_ui.TRY_SCRIPT, report)
        return [(train, *TRAIN_TAB), (library_page(self.host, self.library, self.jobs, report), *LIBRARY_TAB)]

    def panel(self, is_img2img: bool) -> Any:
        """The panel of txt2img or img2img, and what pasting does to it."""
        from .ui.generation_panel import GenerationPanel

        prefix = f"{'img2img' if is_img2img else 'txt2img'}_hypernetworks_"
        panel = GenerationPanel(self.host, self.session.catalog, prefix, PASSES, is_img2img, self.web_ui.panel_open())
        return panel, panel.infotext_fields(read_panel)

    def begin(self, p: Any, panel: Any, values: tuple[Any, ...]) -> None:
        """A job of the web UI starts, with the panel's values."""
        try:
            active, passes = panel.chosen(values) if panel is not None else ([], PASSES[0])
        except HypernetworkError as error:
            p.comment(str(error))
            active, passes = [], PASSES[0]
        self.generation.begin(p, Panel(active, passes))

    def routes(self, demo: Any, app: Any) -> None:
        """REST, guarded by the web UI's own passwords."""
        self.web_ui.add_routes(app, self.host, self.jobs, self.session.catalog)

    def unload(self) -> None:
        """Nothing of ours stays on the model or in the web UI's lists."""
        self.generation.end()
        self.web_ui.unregister()
