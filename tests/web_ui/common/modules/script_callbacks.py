"""What extensions ask to be called for. Their exceptions are reported and swallowed.

CFGDenoiserParams          A1111 44    Forge 45    reForge 45
callback_map               A1111 120   Forge 219   reForge 219
clear_callbacks            A1111 145   Forge 246   reForge 246
app_started_callback       A1111 150   Forge 253   reForge 253
ui_tabs_callback           A1111 175   Forge 278   reForge 278
ui_settings_callback       A1111 195   Forge 298   reForge 298
cfg_denoiser_callback      A1111 227   Forge 330   reForge 330
infotext_pasted_callback   A1111 275   Forge 378   reForge 378
script_unloaded_callback   A1111 283   Forge 386   reForge 386
before_ui_callback         A1111 291   Forge 394   reForge 394
on_app_started             A1111 354   Forge 456   reForge 468
on_ui_tabs                 A1111 371   Forge 473   reForge 485
on_ui_settings             A1111 391   Forge 493   reForge 505
on_cfg_denoiser            A1111 421   Forge 523   reForge 535
on_script_unloaded         A1111 479   Forge 581   reForge 593
on_before_ui               A1111 486   Forge 588   reForge 600
"""
from modules import errors

KINDS = ("app_started", "ui_tabs", "ui_settings", "cfg_denoiser", "infotext_pasted", "script_unloaded", "before_ui")
callback_map = {f"callbacks_{kind}": [] for kind in KINDS}


class CFGDenoiserParams:
    def __init__(self, x, image_cond, sigma, sampling_step, total_sampling_steps, text_cond, text_uncond, denoiser=None):
        self.x, self.image_cond, self.sigma = x, image_cond, sigma
        self.sampling_step, self.total_sampling_steps = sampling_step, total_sampling_steps
        self.text_cond, self.text_uncond, self.denoiser = text_cond, text_uncond, denoiser


def clear_callbacks():
    for callbacks in callback_map.values():
        callbacks.clear()


def call(kind, *arguments, backwards=False):
    """Calls each; gives what they answer."""
    answers = []
    for callback in callback_map[f"callbacks_{kind}"][:: -1 if backwards else 1]:
        try:
            answers.append(callback(*arguments))
        except Exception:
            errors.report(f"Error executing callback {kind}", exc_info=True)
    return answers


def app_started_callback(demo, app):
    call("app_started", demo, app)


def ui_tabs_callback():
    return [tab for tabs in call("ui_tabs") for tab in tabs or []]


def ui_settings_callback():
    call("ui_settings")


def cfg_denoiser_callback(params):
    call("cfg_denoiser", params)


def infotext_pasted_callback(infotext, params):
    call("infotext_pasted", infotext, params)


def script_unloaded_callback():
    call("script_unloaded", backwards=True)


def before_ui_callback():
    call("before_ui", backwards=True)


def on_app_started(callback):
    callback_map["callbacks_app_started"].append(callback)


def on_ui_tabs(callback):
    callback_map["callbacks_ui_tabs"].append(callback)


def on_ui_settings(callback):
    callback_map["callbacks_ui_settings"].append(callback)


def on_cfg_denoiser(callback):
    callback_map["callbacks_cfg_denoiser"].append(callback)


def on_script_unloaded(callback):
    callback_map["callbacks_script_unloaded"].append(callback)


def on_before_ui(callback):
    callback_map["callbacks_before_ui"].append(callback)
