"""Extensions' scripts: found by their base class, given the values of the components that their `ui` made.

AlwaysVisible                                A1111 12    Forge 14      reForge 14
Script                                       A1111 50    Forge 53      reForge 52
Script.title                                 A1111 97    Forge 103     reForge 102
Script.ui                                    A1111 102   Forge 108     reForge 107
Script.show                                  A1111 110   Forge 116     reForge 115
Script.setup                                 A1111 135   Forge 141     reForge 140
Script.process_before_every_sampling         Forge 194   reForge 202
Script.after_extra_networks_activate         A1111 174   Forge 179     reForge 178
Script.postprocess                           A1111 274   Forge 286     reForge 294
scripts_data                                 A1111 368   Forge 383     reForge 391
ScriptClassData                              A1111 370   Forge 385     reForge 393
load_scripts                                 A1111 499   Forge 491     reForge 499
ScriptRunner                                 A1111 554   Forge 552     reForge 560
ScriptRunner.initialize_scripts              A1111 571   Forge 588     reForge 596
ScriptRunner.create_script_ui                A1111 625   Forge 644     reForge 652
ScriptRunner.setup_scrips                    A1111 931   Forge 1015    reForge 1023
ScriptRunner.before_process                  A1111 772   Forge 832     reForge 840
ScriptRunner.process                         A1111 780   Forge 840     reForge 848
ScriptRunner.before_process_batch            A1111 788   Forge 856     reForge 872
ScriptRunner.process_batch                   A1111 804   Forge 880     reForge 896
ScriptRunner.process_before_every_sampling   Forge 888   reForge 864
ScriptRunner.before_hr                       A1111 923   Forge 1007    reForge 1015
ScriptRunner.after_extra_networks_activate   A1111 796   Forge 872     reForge 888
ScriptRunner.postprocess                     A1111 812   Forge 896     reForge 904
"""
import importlib.util
import inspect
import sys
from collections import namedtuple
from pathlib import Path

from modules import errors, script_callbacks, script_loading

AlwaysVisible = object()
ScriptClassData = namedtuple("ScriptClassData", ["script_class", "path", "basedir", "module"])
script_files = []  # (extension's folder, file); the real one looks through its folder of extensions
scripts_data = []


class Script:
    infotext_fields = None
    args_from = args_to = None
    is_img2img = False

    def title(self):
        raise NotImplementedError

    def ui(self, is_img2img):
        pass

    def show(self, is_img2img):
        return True

    def setup(self, p, *args):
        pass

    def before_process(self, p, *args):
        pass

    def process(self, p, *args):
        pass

    def before_process_batch(self, p, *args, **kwargs):
        pass

    def after_extra_networks_activate(self, p, *args, **kwargs):
        pass

    def process_batch(self, p, *args, **kwargs):
        pass

    def process_before_every_sampling(self, p, *args, **kwargs):
        pass

    def before_hr(self, p, *args):
        pass

    def postprocess(self, p, processed, *args):
        pass


def load_scripts():
    """The folder of an extension is on the path while its script runs; Forge leaves it there."""
    scripts_data.clear()
    script_callbacks.clear_callbacks()
    if importlib.util.find_spec("modules_forge"):
        sys.path[:0] = [str(folder) for folder, _ in script_files if str(folder) not in sys.path]
    for folder, file in script_files:
        before = list(sys.path)
        try:
            sys.path.insert(0, str(folder))
            module = script_loading.load_module(str(file))
        except Exception:
            errors.report(f"Error loading script: {file}", exc_info=True)
            continue
        finally:
            sys.path[:] = before
        classes = [thing for thing in vars(module).values() if inspect.isclass(thing) and issubclass(thing, Script)]
        scripts_data.extend(ScriptClassData(found, str(file), str(folder), module) for found in classes)


class ScriptRunner:
    def __init__(self):
        self.alwayson_scripts, self.selectable_scripts = [], []
        self.infotext_fields, self.inputs = [], [None]

    def initialize_scripts(self, is_img2img):
        self.alwayson_scripts.clear()
        self.selectable_scripts.clear()
        for data in scripts_data:
            script = data.script_class()
            script.filename, script.is_img2img = data.path, is_img2img
            visible = script.show(is_img2img)
            if visible == AlwaysVisible:
                self.alwayson_scripts.append(script)
            elif visible:
                self.selectable_scripts.append(script)

    def setup_ui(self):
        for script in self.alwayson_scripts:
            self.create_script_ui(script)

    def create_script_ui(self, script):
        script.args_from = script.args_to = len(self.inputs)
        try:
            controls = script.ui(script.is_img2img)
        except Exception:
            errors.report(f"Error creating UI for {script.filename}", exc_info=True)
            return
        self.inputs += controls or []
        self.infotext_fields += script.infotext_fields or []
        script.args_to = len(self.inputs)

    def _each(self, method, p, *arguments, **named):
        for script in self.alwayson_scripts:
            try:
                values = p.script_args[script.args_from : script.args_to]
                getattr(script, method)(p, *arguments, *values, **named)
            except Exception:
                errors.report(f"Error running {method}: {Path(script.filename).name}", exc_info=True)

    def setup_scrips(self, p, *, is_ui=True):
        self._each("setup", p)

    def before_process(self, p):
        self._each("before_process", p)

    def process(self, p):
        self._each("process", p)

    def before_process_batch(self, p, **kwargs):
        self._each("before_process_batch", p, **kwargs)

    def after_extra_networks_activate(self, p, **kwargs):
        self._each("after_extra_networks_activate", p, **kwargs)

    def process_batch(self, p, **kwargs):
        self._each("process_batch", p, **kwargs)

    def process_before_every_sampling(self, p, **kwargs):
        self._each("process_before_every_sampling", p, **kwargs)

    def before_hr(self, p):
        self._each("before_hr", p)

    def postprocess(self, p, processed):
        self._each("postprocess", p, processed)
