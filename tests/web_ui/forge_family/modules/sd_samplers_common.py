"""The sampler, and the checkpoint that takes over on its way: scripts are not asked again then, extra networks are.

Sampler         Forge 238   reForge 262
apply_refiner   Forge 166   reForge 186
"""
from modules import extra_networks, sd_models, shared
from web_ui import sampling


def apply_refiner(cfg_denoiser, x):
    p = cfg_denoiser.p
    if p.refiner_switch_at is not None and cfg_denoiser.step / cfg_denoiser.total_steps < p.refiner_switch_at:
        return False
    if p.refiner_checkpoint_info is None or shared.sd_model.sd_checkpoint_info == p.refiner_checkpoint_info:
        return False
    sd_models.change_for_the_rest(p.refiner_checkpoint_info)
    if not p.disable_extra_networks:
        extra_networks.activate(p, p.extra_network_data)
    p.setup_conds()
    cfg_denoiser.update_inner_model()
    sd_models.sampling_prepare(sd_models.model_data.get_sd_model().forge_objects.unet, x=x)
    return True


class Sampler(sampling.Sampler):
    def __init__(self, p):
        from modules.sd_samplers_cfg_denoiser import CFGDenoiser

        super().__init__(CFGDenoiser(self), sd_models.sigmas(shared.sd_model), p.sampler_name == "Heun")

    def _launch(self, p, steps, x, *more):
        sd_models.sampling_prepare(shared.sd_model.forge_objects.unet, x=x)
        return super()._launch(p, steps, x, *more)
