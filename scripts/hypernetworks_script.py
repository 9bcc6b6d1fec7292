"""The one file that a web UI executes: which part of the extension answers to which of its callbacks."""
import importlib.util
import sys
import zlib
from pathlib import Path

from modules import script_callbacks, scripts

ROOT = Path(__file__).resolve().parent.parent
NAME = f"hypernetworks_extension_{zlib.crc32(str(ROOT).encode())}"  # no other extension's `extension.py` or `hypernetworks` can take its place


def load_root():
    """`extension.py` of this folder, the same module again after "Reload UI"."""
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(NAME, ROOT / "extension.py")
        sys.modules[NAME] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[NAME]
            raise
    return sys.modules[NAME]


extension = load_root().web_ui()


class HypernetworksScript(scripts.Script):
    """The panel in txt2img and img2img, and what acts on each job."""

    panel = None

    def title(self):
        return "Hypernetworks"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        self.panel, self.infotext_fields = extension.panel(is_img2img)
        return self.panel.inputs

    def setup(self, p, *values):
        extension.begin(p, self.panel, values)

    def postprocess(self, p, processed, *values):
        extension.generation.end()


script_callbacks.on_before_ui(extension.before_ui)
script_callbacks.on_ui_settings(extension.settings)
script_callbacks.on_ui_tabs(extension.tabs)
script_callbacks.on_app_started(extension.routes)
script_callbacks.on_cfg_denoiser(extension.host.on_denoiser)
script_callbacks.on_script_unloaded(extension.unload)
