"""The checkpoint: what is to be loaded is said apart from loading, and a stand-in is there until then.

model_data                    Forge 408
FakeInitialModel              Forge 385
SdModelData                   Forge 395
SdModelData.get_sd_model      Forge 401
SdModelData.set_sd_model      Forge 404
get_closet_checkpoint_match   Forge 198
select_checkpoint             Forge 233
reload_model_weights          Forge 447
apply_token_merging           Forge 456
forge_model_reload            Forge 473

`change_for_the_rest` is what modules/sd_samplers_common.py:194 and modules/processing.py:1391 do in place.
"""
import torch
from backend import memory_management
from backend.diffusion_engine.base import ForgeDiffusionEngine
from backend.sampling.sampling_function import sampling_function as sample_function
from backend.sampling.sampling_function import sampling_prepare
from modules import shared
from web_ui.checkpoints import CHECKPOINTS
from web_ui.joined import merged

__all__ = ["sample_function", "sampling_prepare"]
TEXT_PREFIX = "encoder."
DROPS_UNCOND = TELLS_TWICE = True


class FakeInitialModel:
    def __init__(self):
        self.cond_stage_model, self.chunk_length = None, 75


class SdModelData:
    def __init__(self):
        self.sd_model, self.forge_loading_parameters, self.forge_hash = FakeInitialModel(), None, ""
        self.loaded_sd_models = []  # all that ever were, for the tests

    def get_sd_model(self):
        return self.sd_model

    def set_sd_model(self, v):
        self.sd_model = v
        self.loaded_sd_models.append(v)


model_data = SdModelData()


def get_closet_checkpoint_match(search_string):
    return CHECKPOINTS.get(search_string)


def select_checkpoint():
    return CHECKPOINTS.get(shared.opts.sd_model_checkpoint)


def reload_model_weights(sd_model=None, info=None, forced_reload=False):
    pass


def apply_token_merging(sd_model, token_merging_ratio):
    if token_merging_ratio > 0:
        sd_model.forge_objects.unet = sd_model.forge_objects.unet.clone()
        sd_model.forge_objects.unet.model_options["transformer_options"]["patches"] = {"attn1_output_patch": [merged]}


@torch.inference_mode()
def forge_model_reload():
    if model_data.forge_loading_parameters is None:
        from modules_forge.main_entry import refresh_model_loading_parameters

        refresh_model_loading_parameters()
    current = str(model_data.forge_loading_parameters)
    if model_data.forge_hash == current:
        return model_data.sd_model, False
    info = model_data.forge_loading_parameters["checkpoint_info"]
    if info is None:
        raise ValueError("You do not have any model!")
    model_data.set_sd_model(ForgeDiffusionEngine(info))
    model_data.forge_hash = current
    return model_data.sd_model, True


def add_patches(patcher, filename, added, strength):
    """One LoRA's, with the arguments that only Forge's take."""
    patcher.add_patches(filename=filename, patches=added, strength_patch=strength)


def override(settings):
    """What a job asks for, as modules/sysinfo.py:218 does it; then modules/processing.py:795. All models leave where another one was chosen
    and the one at hand was loaded nevertheless."""
    from modules_forge import main_entry

    for name, value in settings.items():
        if name == "sd_model_checkpoint":
            main_entry.checkpoint_change(value, save=False)
        else:
            shared.opts.set(name, value, is_api=True, run_callbacks=False)
    _, just_reloaded = forge_model_reload()
    if main_entry.need_global_unload and not just_reloaded:
        memory_management.unload_all_models()
    main_entry.need_global_unload = False


def as_chosen():
    """What every batch begins with."""
    forge_model_reload()


def change_for_the_rest(info):
    """Another checkpoint for the rest of the job, while the settings go back to the one before."""
    from modules_forge import main_entry

    before = shared.opts.sd_model_checkpoint
    if main_entry.checkpoint_change(info.short_title, save=False, refresh=False):
        try:
            main_entry.refresh_model_loading_parameters()
            forge_model_reload()
        finally:
            main_entry.checkpoint_change(before, save=False, refresh=True)


def sigmas(sd_model):
    return sd_model.forge_objects_original.unet.model.predictor.sigmas
