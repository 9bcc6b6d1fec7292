"""Guidance, and the UNet's coming. `model_management.memory.free` says how many rows fit.

forge_sample       reForge 56
sampling_prepare   reForge 116
"""
from ldm_patched.modules import model_management
from web_ui import joined


def forge_sample(self, denoiser_params, cond_scale, cond_composition):
    patcher = self.inner_model.inner_model.forge_objects.unet
    x = denoiser_params.x
    uncond = joined.compile_conditions(denoiser_params.text_uncond)
    cond = joined.compile_weighted_conditions(denoiser_params.text_cond, cond_composition)
    return joined.guided(patcher.model, x, denoiser_params.sigma, uncond, cond, cond_scale, patcher.model_options, lambda rows: fits(patcher.model, rows))


def fits(model, rows):
    return 1.5 * model.memory_required([rows]) < model_management.get_free_memory()


def sampling_prepare(unet, x):
    model_management.load_models_gpu([unet])
