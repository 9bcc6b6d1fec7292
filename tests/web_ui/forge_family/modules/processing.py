"""A job, Forge's way: within `torch.inference_mode`; before each pass scripts get a fresh copy of the model's patchers.

StableDiffusionProcessing          Forge 123    reForge 142
StableDiffusionProcessingTxt2Img   Forge 1186   reForge 1283
Processed                          Forge 518    reForge 634
get_fixed_seed                     Forge 638    reForge 754
create_infotext                    Forge 668    reForge 784
process_images                     Forge 815    reForge 898
process_images_inner               Forge 852    reForge 938
"""
import random

import torch
from modules import extra_networks, sd_models, shared
from web_ui.pipeline import Processed, StableDiffusionProcessing, batches, begin, create_infotext, end

__all__ = ["Processed", "StableDiffusionProcessing", "create_infotext"]


class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    def setup_conds(self):
        super().setup_conds()
        if self.cfg_scale == 1 and not self.is_hr_pass and sd_models.DROPS_UNCOND:
            self.uc = None

    def before_sampling(self, x, c, uc):
        if self.is_hr_pass and self.scripts is not None and sd_models.TELLS_TWICE:
            self.scripts.process_before_every_sampling(p=self, x=x, noise=x, c=c, uc=uc)
        self.sd_model.forge_objects = self.sd_model.forge_objects_after_applying_lora.shallow_copy()
        sd_models.apply_token_merging(self.sd_model, shared.opts.token_merging_ratio)
        if self.scripts is not None:
            self.scripts.process_before_every_sampling(self, x=x, noise=x, c=c, uc=uc)

    def change_checkpoint(self, info):
        sd_models.change_for_the_rest(info)


def get_fixed_seed(seed):
    return random.randrange(4294967294) if seed in (None, "", -1) else int(seed)


def process_images(p):
    opts = shared.opts
    if p.scripts is not None:
        p.scripts.before_process(p)
    stored = {name: opts.data[name] for name in p.override_settings if name in opts.data}
    try:
        sd_models.override(p.override_settings)
        return process_images_inner(p)
    finally:
        if p.override_settings_restore_afterwards:
            for name, value in stored.items():
                opts.set(name, value)


def process_images_inner(p):
    seed, _ = get_fixed_seed(p.seed), get_fixed_seed(p.subseed)
    begin(p, seed)
    with torch.inference_mode():
        found = batches(p, _sample)
    return end(p, *found)


def _sample(p):
    sd_models.as_chosen()  # a refiner or the second pass may have changed it
    p.sd_model.forge_objects = p.sd_model.forge_objects_original.shallow_copy()
    if not p.disable_extra_networks:
        extra_networks.activate(p, p.extra_network_data)
    p.sd_model.forge_objects = p.sd_model.forge_objects_after_applying_lora.shallow_copy()
    if p.scripts is not None:
        p.scripts.process_batch(p, batch_number=p.iteration, prompts=p.prompts, seeds=p.seeds, subseeds=p.subseeds)
    p.setup_conds()
    return p.sample()
