"""A job, A1111's way: within `torch.no_grad`; scripts do not hear of the passes.

StableDiffusionProcessing          A1111 140
StableDiffusionProcessingTxt2Img   A1111 1123
Processed                          A1111 519
get_fixed_seed                     A1111 675
create_infotext                    A1111 705
process_images                     A1111 761
process_images_inner               A1111 801
"""
import random

import torch
from modules import sd_models, sd_unet, shared
from web_ui.pipeline import Processed, StableDiffusionProcessing, batches, begin, create_infotext, end

__all__ = ["Processed", "create_infotext"]


class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    pass


def get_fixed_seed(seed):
    return random.randrange(4294967294) if seed in (None, "", -1) else int(seed)


def process_images(p):
    opts = shared.opts
    if p.scripts is not None:
        p.scripts.before_process(p)
    stored = {name: opts.data[name] for name in p.override_settings if name in opts.data}
    try:
        if sd_models.checkpoint_aliases.get(p.override_settings.get("sd_model_checkpoint")) is None:
            p.override_settings.pop("sd_model_checkpoint", None)
            sd_models.reload_model_weights()
        for name, value in p.override_settings.items():
            opts.set(name, value, is_api=True, run_callbacks=False)
            if name == "sd_model_checkpoint":
                sd_models.reload_model_weights()
        sd_models.apply_token_merging(p.sd_model, opts.token_merging_ratio)
        return process_images_inner(p)
    finally:
        sd_models.apply_token_merging(p.sd_model, 0)
        if p.override_settings_restore_afterwards:
            for name, value in stored.items():
                setattr(opts, name, value)


def process_images_inner(p):
    seed, _ = get_fixed_seed(p.seed), get_fixed_seed(p.subseed)
    begin(p, seed)
    with torch.no_grad(), p.sd_model.ema_scope():
        sd_unet.apply_unet()
        found = batches(p, _sample)
    return end(p, *found)


def _sample(p):
    from modules import extra_networks

    sd_models.reload_model_weights()  # a refiner may have changed it
    if not p.disable_extra_networks:
        extra_networks.activate(p, p.extra_network_data)
    if p.scripts is not None:
        p.scripts.process_batch(p, batch_number=p.iteration, prompts=p.prompts, seeds=p.seeds, subseeds=p.subseeds)
    p.setup_conds()
    return p.sample()
