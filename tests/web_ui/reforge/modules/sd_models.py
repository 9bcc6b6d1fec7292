"""The checkpoint, loaded when it is asked for.

model_data                    reForge 986
SdModelData                   reForge 951
SdModelData.get_sd_model      reForge 958
SdModelData.set_sd_model      reForge 978
SkipWritingToConfig           reForge 745
get_closet_checkpoint_match   reForge 300
select_checkpoint             reForge 335
load_model                    reForge 1089
reload_model_weights          reForge 1262
apply_token_merging           reForge 1373
checkpoint_aliases            reForge 143
"""
from modules import shared
from modules_forge.forge_loader import SdModel
from modules_forge.forge_sampler import forge_sample as sample_function
from modules_forge.forge_sampler import sampling_prepare
from web_ui.checkpoints import CHECKPOINTS
from web_ui.joined import merged

checkpoint_aliases = CHECKPOINTS
__all__ = ["sample_function", "sampling_prepare"]
TEXT_PREFIX = ""
DROPS_UNCOND = TELLS_TWICE = False


class SdModelData:
    def __init__(self):
        self.sd_model, self.loaded_sd_models = None, []

    def get_sd_model(self):
        if self.sd_model is None and select_checkpoint() is not None:
            load_model()
        return self.sd_model

    def set_sd_model(self, v, already_loaded=False):
        self.sd_model = v
        self.loaded_sd_models.append(v)


model_data = SdModelData()


class SkipWritingToConfig:
    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc_value, exc_traceback):
        pass


def get_closet_checkpoint_match(search_string):
    return CHECKPOINTS.get(search_string)


def select_checkpoint():
    return CHECKPOINTS.get(shared.opts.sd_model_checkpoint)


def load_model(checkpoint_info=None, already_loaded_state_dict=None, forced_reload=False):
    model_data.set_sd_model(SdModel(checkpoint_info or select_checkpoint()).eval())
    return model_data.sd_model


def reload_model_weights(sd_model=None, info=None, forced_reload=False):
    info = info or select_checkpoint()
    if model_data.get_sd_model().sd_checkpoint_info is not info:
        load_model(info)
    return model_data.sd_model


def apply_token_merging(sd_model, token_merging_ratio):
    if token_merging_ratio > 0:
        sd_model.forge_objects.unet = sd_model.forge_objects.unet.clone()
        sd_model.forge_objects.unet.model_options["transformer_options"]["patches"] = {"attn1_output_patch": [merged]}


def add_patches(patcher, filename, added, strength):
    """One LoRA's, with the arguments that only reForge's take."""
    patcher.add_patches(added, strength_patch=strength)


def override(settings):
    """What a job asks for, as modules/processing.py:898 does it."""
    if checkpoint_aliases.get(settings.get("sd_model_checkpoint")) is None:
        settings.pop("sd_model_checkpoint", None)
        reload_model_weights()
    for name, value in settings.items():
        shared.opts.set(name, value, is_api=True, run_callbacks=False)
        if name == "sd_model_checkpoint":
            reload_model_weights()


def as_chosen():
    """What every batch begins with."""
    reload_model_weights()


def change_for_the_rest(info):
    """Another checkpoint for the rest of the job."""
    with SkipWritingToConfig():
        reload_model_weights(info=info)


def sigmas(sd_model):
    return sd_model.forge_objects_original.unet.model.model_sampling.sigmas
