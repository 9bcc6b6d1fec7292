"""Guidance, and the UNet's coming and going. `memory_management.memory.free` says how many rows fit.

calc_cond_uncond_batch   Forge 154
sampling_function        Forge 325
sampling_prepare         Forge 366
"""
from backend import memory_management
from web_ui import joined


def calc_cond_uncond_batch(model, cond, uncond, x_in, timestep, model_options):
    return joined.evaluate(model, cond, uncond, x_in, timestep, model_options, lambda rows: fits(model, rows))


def fits(model, rows):
    return model.memory_required([rows]) < memory_management.get_free_memory()


def sampling_function(self, denoiser_params, cond_scale, cond_composition):
    patcher = self.inner_model.inner_model.forge_objects.unet
    x = denoiser_params.x
    uncond = joined.compile_conditions(denoiser_params.text_uncond)
    cond = joined.compile_weighted_conditions(denoiser_params.text_cond, cond_composition)
    return joined.guided(
        patcher.model, x, denoiser_params.sigma, uncond, cond, cond_scale, patcher.model_options, lambda rows: fits(patcher.model, rows)
    )


def sampling_prepare(unet, x):
    memory_management.load_models_gpu([unet], memory_required=unet.memory_required([2 * len(x), *x.shape[1:]]))
