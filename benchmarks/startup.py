"""What the extension adds to a web UI's start, and how long its tabs take to be seen.

    python benchmarks/startup.py [--small] [--json FILE] [--out FOLDER]

The web UI is AUTOMATIC1111 in miniature (`tests/web_ui`), in a process that has imported what a web UI has imported before it comes to its
extensions. Timed is what it does with them: scripts are executed, asked for their settings, panels, tabs and routes, and the page is put
together; with ours among them and without, in turns, each time in a process of its own, by the processor's clock: a start waits for nothing, and other programs do not
count. The extension is a copy, as a web UI installs it. Python compiles it at the first start and keeps that; the first start is told apart, all others count.
Then a browser opens the page and our tabs, by the clock on the wall. The figures depend on the version of gradio, which is named.
"""
from __future__ import annotations

import gc
import importlib
import re
import shutil
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from report import arguments, in_new_process, table, write_figures

ROOT = Path(__file__).resolve().parent.parent
IMPORTED = ("torch", "gradio", "fastapi", "safetensors.torch", "numpy", "PIL.Image", "tqdm")  # by any web UI, before extensions
ROUNDS = 9
PARTS = ("scripts executed", "settings and panels", "tabs", "routes", "the page", "collecting garbage")
TABS = {"train": ("Train Hypernetwork", "#hypernetworks_train"), "library": ("Hypernetworks", "#hypernetworks_library_table")}
TAB = ".tab-nav button, .tab-container:not(.visually-hidden) button"  # gradio 6 keeps a second, unseen row of tabs to measure their widths
PAINTED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))))"


class Clock:
    """The processor's, without the time that Python takes to collect garbage, which falls into any part; that is `collecting`."""

    def __init__(self) -> None:
        self.collecting, self._since = 0.0, 0.0
        gc.callbacks.append(self._collect)

    def _collect(self, phase: str, about: dict[str, int]) -> None:
        if phase == "stop":
            self.collecting += time.process_time() - self._since
        self._since = time.process_time()

    def seconds(self) -> float:
        """Since some moment."""
        return time.process_time() - self.collecting


class WebUi:
    """The miniature between its own imports and its open page, with our extension or with none."""

    def __init__(self, folder: Path, with_ours: bool) -> None:
        sys.dont_write_bytecode = False  # whatever the environment says: a web UI's Python keeps what it has compiled
        sys.path[:0] = [str(ROOT / "tests")]
        self.miniature = importlib.import_module("web_ui")
        sys.path[:0] = [str(self.miniature.ROOT / tree) for tree in self.miniature.TREES["a1111"]]
        paths, scripts = self.part("paths"), self.part("scripts")
        paths.script_path, paths.data_path, paths.models_path = str(folder), str(folder), str(folder / "models")
        self.part("shared").cmd_opts.api = True
        extension = _installed(folder)
        ours = [(extension, extension / "scripts" / "hypernetworks_script.py")] if with_ours else []
        scripts.script_files[:] = [(self.miniature.ROOT / "common", self.miniature.ROOT / "common" / "scripts" / "xyz_grid.py"), *ours]
        for name in ("script_callbacks", "ui_extra_networks", "extra_networks", "sd_models", "processing"):
            self.part(name)

    @staticmethod
    def part(name: str) -> Any:
        """A module of the web UI."""
        return importlib.import_module(f"modules.{name}")

    def start(self) -> tuple[list[float], Any]:
        """Seconds of each of `PARTS`, and the page."""
        import gradio
        from fastapi import FastAPI

        clock = Clock()
        callbacks, times = self.part("script_callbacks"), [clock.seconds()]
        self.miniature.WebUi.initialize(self)
        times.append(clock.seconds())
        page = self.miniature.WebUi.open_page(self)
        times.append(clock.seconds())
        tabs = callbacks.ui_tabs_callback()
        times.append(clock.seconds())
        callbacks.app_started_callback(None, FastAPI())
        times.append(clock.seconds())
        with gradio.Blocks() as whole, gradio.Tabs():
            for content, title, identifier in [(page, "txt2img", "tab_txt2img"), *tabs]:
                with gradio.Tab(title, elem_id=identifier):
                    content.render()
        times.append(clock.seconds())
        assert self.part("errors").reported == [], self.part("errors").reported
        return [*(after - before for before, after in zip(times, times[1:], strict=False)), clock.collecting], whole


def install(folder: Path) -> None:
    """Puts a copy of the extension, not yet compiled, into a web UI's folder."""
    extension = _installed(folder)
    shutil.rmtree(extension, ignore_errors=True)
    for name in ("hypernetworks", "scripts"):
        shutil.copytree(ROOT / name, extension / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "extension.py", extension)


def _installed(folder: Path) -> Path:
    return folder / "extensions" / "hypernetworks"


def started(folder: Path, with_ours: bool) -> list[float]:
    """Of one process: seconds of each of `PARTS`."""
    for name in IMPORTED:
        importlib.import_module(name)
    print(f"gradio {sys.modules['gradio'].__version__}, {'with' if with_ours else 'without'} ours", flush=True)
    return WebUi(folder, with_ours).start()[0]


def painted(folder: Path, times: int) -> dict[str, float] | None:
    """Of one process: seconds from opening the page, and from the click on a tab, until the browser has painted. None without a browser."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        return None
    whole = WebUi(folder, True).start()[1]
    address = whole.queue().launch(server_name="127.0.0.1", quiet=True, prevent_thread_lock=True)[1]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu", "--no-first-run"])
        rounds = [_paint(chromium, address) for _ in range(times)]
        chromium.close()
    whole.close(verbose=False)
    return {name: median(found[name] for found in rounds) for name in rounds[0]}


def _paint(chromium: Any, address: str) -> dict[str, float]:
    page = chromium.new_page()
    page.set_default_timeout(120_000)
    page.goto(address, wait_until="commit")
    page.wait_for_selector(TAB)
    found = {"page_paint_s": page.evaluate(PAINTED) / 1000}
    for name, (title, part) in TABS.items():
        clicked = page.evaluate("() => performance.now()")
        page.locator(TAB).filter(has_text=re.compile(f"^\\s*{title}\\s*$")).first.click()
        page.wait_for_selector(part)
        found[f"{name}_tab_paint_s"] = (page.evaluate(PAINTED) - clicked) / 1000
    page.close()
    return found


def main() -> None:
    """The command line."""
    options = arguments("startup", __doc__).parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    install(options.out)
    rounds: dict[bool, list[list[float]]] = {True: [], False: []}
    for _ in range(1 + (1 if options.small else ROUNDS)):
        for with_ours, found in rounds.items():
            found.append(in_new_process(started, options.out.resolve(), with_ours))
    first = sum(rounds[True].pop(0)) - sum(rounds[False].pop(0))
    ours, bare = ([median(times) for times in zip(*rounds[with_ours], strict=True)] for with_ours in (True, False))
    added = median(sum(one) - sum(other) for one, other in zip(rounds[True], rounds[False], strict=True))
    rows = [(part, without, with_, with_ - without) for part, without, with_ in zip(PARTS, bare, ours, strict=True)]
    print(table(("seconds", "without", "with", "added"), [*rows, ("all, median of pairs", None, None, added), ("the first start", None, None, first)]))
    paint = in_new_process(painted, options.out.resolve(), 1 if options.small else ROUNDS)
    if paint is None:
        print("\nNo browser, or no playwright to drive it: nothing was painted.")
    else:
        print("\n" + table(("seconds until painted", "median"), [(name, seconds) for name, seconds in paint.items()]))
    figures = {"added_s": added, "first_start_s": first, **{f"added_{part.replace(' ', '_')}_s": row[3] for part, row in zip(PARTS, rows, strict=True)}}
    write_figures(options.json, figures | (paint or {}))


if __name__ == "__main__":
    main()
