"""A real browser, the app that it opens, and what a person does on its page."""
import io
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy
import pytest
from PIL import Image

PICTURES = Path(__file__).parent.parent / "hypernetworks" / "embedded" / "pictures" / "striped"
OFFLINE = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic", "--no-first-run"]
SLOW = 240_000  # milliseconds that a busy machine may take for training or drawing


def missing(what):
    """Skips where a browser cannot be expected, fails where it is part of the job."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


@contextmanager
def opened_browser():
    """Chromium, until the end."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed: pip install playwright")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        missing("no Chromium was found: install it, for example with apt install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu", *OFFLINE])
        yield opened
        opened.close()


@contextmanager
def app_running(home, *command):
    """An app in a process of its own, of a Python command that ends with the port; what it prints goes to `log.txt`. Gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with open(home / "log.txt", "w") as log:
        app = subprocess.Popen([sys.executable, *map(str, command), str(port)], stdout=log, stderr=subprocess.STDOUT, cwd=Path(__file__).parent.parent)
        deadline = time.monotonic() + 180
        while "Ready" not in (home / "log.txt").read_text():
            if app.poll() is not None or time.monotonic() > deadline:
                app.kill()
                pytest.fail(f"The app did not start:\n{(home / 'log.txt').read_text()}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/"
        app.terminate()
        app.wait(120)


class Page:
    """What a person does on the page, by element ids."""

    def __init__(self, browser, address, width=1400, before=""):
        """`before`: a script that runs before those of the page."""
        self.tab = browser.new_page(viewport={"width": width, "height": 1000})
        self.tab.add_init_script(before)
        self.tab.set_default_timeout(SLOW)
        self.errors, self.elsewhere = [], []
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("request", lambda request: None if request.url.startswith((address, "data:", "blob:")) else self.elsewhere.append(request.url))
        self.address = address
        self.open()

    def open(self):
        self.tab.goto(self.address)
        self.tab.wait_for_selector("#hypernetworks_train")

    def find(self, name):
        return self.tab.locator(f"#hypernetworks_{name}").first

    def click(self, name):
        self.find(name).click()

    def fill(self, name, value):
        field = self.find(name).locator("textarea, input:not([type=range])").first
        field.fill(str(value))
        field.press("Tab")

    def unfold(self, name):
        self.find(name).locator("button, .label-wrap").first.click()

    def choose(self, name, text):
        """From a dropdown, once it offers what has this text. gradio 3 leaves what comes later out of an open list, which is then opened again."""
        from playwright.sync_api import TimeoutError

        field, deadline = self.find(name).locator("input").first, time.monotonic() + SLOW / 1000
        while True:
            field.click()
            try:
                self.tab.locator("[role=option]:visible, ul.options li:visible").filter(has_text=text).first.click(timeout=3000)
                return
            except TimeoutError:
                assert time.monotonic() < deadline, f"{name} does not offer {text!r}."
                field.blur()

    def show_tab(self, title):
        # gradio 6 keeps a second, unseen row of tabs to measure their widths
        self.tab.locator(".tab-nav button, .tab-container:not(.visually-hidden) button").filter(has_text=title).first.click()

    def wait_for(self, condition, timeout=SLOW):
        self.tab.wait_for_function(f"() => {{ const find = (s) => document.querySelector('#hypernetworks_' + s); return {condition}; }}", timeout=timeout)

    def state(self):
        return self.find("status").locator("[data-state]").first.get_attribute("data-state")

    def percent(self):
        bar = self.find("status").locator("[role=progressbar]")
        return int(bar.first.get_attribute("aria-valuenow")) if bar.count() else 0

    def chart_points(self):
        line = self.find("status").locator("polyline.hypernetworks-loss")
        return len(line.first.get_attribute("points").split()) if line.count() else 0

    def pixels(self, name):
        source = self.find(name).locator("img").first.get_attribute("src")
        data = self.tab.evaluate("async (url) => [...new Uint8Array(await (await fetch(url)).arrayBuffer())]", source)
        return numpy.asarray(Image.open(io.BytesIO(bytes(data))).convert("RGB"))

    def source(self, name):
        image = self.find(name).locator("img")
        return image.first.get_attribute("src") if image.count() else ""
