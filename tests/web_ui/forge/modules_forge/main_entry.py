"""What is chosen at the top of the page, and becomes the model only with the next job.

checkpoint_change                  Forge 242
refresh_model_loading_parameters   Forge 220
"""
from modules import sd_models, shared

need_global_unload = False  # of modules/processing.py


def refresh_model_loading_parameters():
    global need_global_unload
    need_global_unload = True
    sd_models.model_data.forge_loading_parameters = {
        "checkpoint_info": sd_models.select_checkpoint(), "additional_modules": shared.opts.forge_additional_modules, "unet_storage_dtype": None
    }  # fmt: skip


def checkpoint_change(ckpt_name, save=True, refresh=True):
    if ckpt_name == shared.opts.data.get("sd_model_checkpoint"):
        return False
    shared.opts.set("sd_model_checkpoint", ckpt_name)
    if refresh:
        refresh_model_loading_parameters()
    return True
