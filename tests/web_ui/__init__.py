"""AUTOMATIC1111, Forge and reForge in miniature, for tests where none of them can be had.

Each is a tree of modules of the names that the real one has, on the path while `started` lasts. Every file says at its top which of the
real one's functions it stands in for, and in which line these are; `test_web_ui_fakes.py` compares lines and arguments with a checkout.
Behaviour is theirs, as far as the extension can see it; no line is.
"""
import importlib
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent
EXTENSION = ROOT.parent.parent
TREES = {"a1111": ("a1111", "common"), "forge": ("forge", "forge_family", "common"), "reforge": ("reforge", "forge_family", "common")}
OURS = ("modules", "modules_forge", "backend", "ldm_patched", "web_ui.pipeline", "web_ui.sampling", "networks", "extra_networks_lora")
LORA = (ROOT / "common" / "extensions-builtin" / "Lora", ROOT / "common" / "extensions-builtin" / "Lora" / "scripts" / "lora_script.py")
LOADED = ("hypernetworks_package_", "hypernetworks_extension_")


def belongs(name):
    """Whether a module comes from a web UI that was started, or from the extension as that loaded it."""
    return name.startswith(LOADED) or any(name == own or name.startswith(f"{own}.") for own in OURS)


@contextmanager
def started(kind, folder, scripts=(), **flags):
    """A web UI that has its page open, with folders of its own. Afterwards nothing of it is left, and nothing that it swallowed.

    `scripts` are (folder, file) of other extensions, `flags` what stands on its command line.
    """
    path = list(sys.path)
    assert not [name for name in sys.modules if belongs(name)]
    sys.path[:0] = [str(ROOT / tree) for tree in TREES[kind]]
    importlib.invalidate_caches()
    try:
        ui = WebUi(kind, folder, scripts, flags)
        yield ui
        assert ui.errors == []
        ui.unload()
        assert ui.hooks() == 0
    finally:
        sys.path[:] = path
        for name in [name for name in sys.modules if belongs(name)]:
            del sys.modules[name]
            if name.startswith("web_ui."):
                delattr(sys.modules["web_ui"], name.removeprefix("web_ui."))
        importlib.invalidate_caches()


class WebUi:
    """One that runs. `part` gives its modules, `extension` what ours has built."""

    def __init__(self, kind, folder, scripts, flags):
        self.kind, self.folder = kind, Path(folder)
        paths = self.part("paths")
        paths.script_path, paths.data_path, paths.models_path = str(folder), str(folder), str(self.folder / "models")
        self.networks = self.folder / "models" / "hypernetworks"
        self.networks.mkdir(parents=True, exist_ok=True)
        self.shared = self.part("shared")
        vars(self.shared.cmd_opts).update(flags)
        self.state, self.opts = self.shared.state, self.shared.opts
        self.part("scripts").script_files[:] = [
            (ROOT / "common", ROOT / "common" / "scripts" / "xyz_grid.py"), *scripts, (EXTENSION, EXTENSION / "scripts" / "hypernetworks_script.py")
        ]  # fmt: skip
        self._opened = False
        self.initialize()

    @staticmethod
    def part(name):
        """A module of the web UI."""
        return importlib.import_module(f"modules.{name}")

    @contextmanager
    def one_test(self):
        """Within it settings and checkpoint may be changed, but nothing may be swallowed, and no hook may stay."""
        settings = dict(self.opts.data)
        try:
            yield
            assert self.errors == [] and self.hooks() == 0
        finally:
            self.errors.clear()
            self.opts.data.update({name: value for name, value in settings.items() if name != "sd_model_checkpoint"})
            self.choose("base")
            if self.kind == "a1111":
                del self.loaded[1:]

    def initialize(self):
        """As modules/initialize.py:117, initialize_rest, and the first of webui.py:44."""
        self.part("scripts").load_scripts()
        pages, networks = self.part("ui_extra_networks"), self.part("extra_networks")
        pages.initialize()
        pages.register_default_pages()
        networks.initialize()
        networks.register_default_extra_networks()
        self.part("script_callbacks").before_ui_callback()

    def open_page(self):
        """As modules/ui.py, create_ui: settings, then the scripts' own components, and a model for no one yet."""
        import gradio

        self.part("script_callbacks").ui_settings_callback()
        scripts = self.part("scripts")
        scripts.scripts_txt2img, scripts.scripts_img2img = scripts.ScriptRunner(), scripts.ScriptRunner()
        with gradio.Blocks() as page:
            for runner, is_img2img in ((scripts.scripts_txt2img, False), (scripts.scripts_img2img, True)):
                runner.initialize_scripts(is_img2img)
                runner.setup_ui()
        self._opened = True
        return page

    def reload(self):
        """The button "Reload UI": webui.py:140."""
        self.unload()
        self.initialize()
        self._opened = False

    def unload(self):
        """What precedes it."""
        self.part("script_callbacks").script_unloaded_callback()

    @property
    def runner(self):
        """Of txt2img."""
        if not self._opened:
            self.open_page()
        return self.part("scripts").scripts_txt2img

    @property
    def script(self):
        """Ours in txt2img."""
        return next(script for script in self.runner.alwayson_scripts if script.title() == "Hypernetworks")

    @contextmanager
    def other_script(self, **methods):
        """Another extension's, before ours, with these methods (self left out)."""
        scripts = self.part("scripts")
        script = type("Other", (scripts.Script,), {"title": lambda self: "Other", "filename": "other.py", "args_from": 0, "args_to": 0})()
        vars(script).update(methods)
        self.runner.alwayson_scripts.insert(0, script)
        try:
            yield
        finally:
            self.runner.alwayson_scripts.remove(script)

    @property
    def extension(self):
        """What our script built."""
        return next(data.module.extension for data in self.part("scripts").scripts_data if data.script_class.__name__ == "HypernetworksScript")

    @property
    def host(self):
        return self.extension.host

    @property
    def unet(self):
        """That of the model at hand."""
        sd_model = self.shared.sd_model
        return sd_model.model.diffusion_model if self.kind == "a1111" else sd_model.forge_objects_original.unet.model.diffusion_model

    @property
    def errors(self):
        """What was swallowed."""
        return self.part("errors").reported

    def hooks(self):
        """How many there are on all that was loaded."""
        roots = [model.model if self.kind == "a1111" else model.forge_objects_original.unet.model for model in self.loaded]
        return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for root in roots for part in root.modules())

    @property
    def loaded(self):
        """The models that are, or in Forge and reForge ever were."""
        return self.part("sd_models").model_data.loaded_sd_models

    def choose(self, checkpoint):
        """At the top of the page, and loaded as the next job would."""
        if self.kind == "forge":
            importlib.import_module("modules_forge.main_entry").checkpoint_change(checkpoint)
            self.part("sd_models").forge_model_reload()
        else:
            self.opts.sd_model_checkpoint = checkpoint
            self.part("sd_models").reload_model_weights()

    @property
    def memory(self):
        """Forge's and reForge's, which moves models."""
        name = "backend.memory_management" if self.kind == "forge" else "ldm_patched.modules.model_management"
        return importlib.import_module(name).memory

    def encoded(self, text):
        """[tokens, width]: what the UNet sees of a prompt."""
        with torch.no_grad():
            found = self.shared.sd_model.get_learned_conditioning([text])
        return (found["crossattn"] if isinstance(found, dict) else found)[0]

    def values(self, rows=(), passes=None):
        """Of all scripts' components, with these rows in our panel: (name, strength, from, to), the last ones may be missing."""
        found = [None, *(component.value for component in self.runner.inputs[1:])]
        start = self.script.args_from
        for number, row in enumerate(rows):
            found[start + 4 * number : start + 4 * number + len(row)] = row
        if passes is not None:
            found[self.script.args_to - 1] = passes
        return found

    def job(self, prompt, rows=(), passes=None, **about):
        """A `p` as modules/txt2img.py:14 makes it."""
        processing = self.part("processing")
        given = {"sampler_name": "Euler", "steps": 4, "cfg_scale": 3.0, "width": 32, "height": 32, "seed": 7} | about
        p = processing.StableDiffusionProcessingTxt2Img(sd_model=self.shared.sd_model, prompt=prompt, **given)
        p.scripts, p.script_args = self.runner, self.values(rows, passes)
        return p

    def txt2img(self, prompt, rows=(), passes=None, **about):
        """The button "Generate": what the job gives, with the job as `p` and the `latents` behind the last step."""
        with self.part("call_queue").queue_lock:
            self.state.begin(job="txt2img")
            p = self.job(prompt, rows, passes, **about)
            try:
                found = self.part("processing").process_images(p)
            finally:
                p.close()
                self.state.end()
        found.p = p
        return found
