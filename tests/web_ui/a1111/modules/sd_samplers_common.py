"""The sampler, and the checkpoint that takes over on its way.

Sampler         A1111 218
apply_refiner   A1111 158
"""
from modules import sd_models, shared
from web_ui import sampling


def apply_refiner(cfg_denoiser):
    p = cfg_denoiser.p
    if p.refiner_switch_at is not None and cfg_denoiser.step / cfg_denoiser.total_steps < p.refiner_switch_at:
        return False
    if p.refiner_checkpoint_info is None or shared.sd_model.sd_checkpoint_info == p.refiner_checkpoint_info:
        return False
    with sd_models.SkipWritingToConfig():
        sd_models.reload_model_weights(info=p.refiner_checkpoint_info)
    p.setup_conds()
    cfg_denoiser.update_inner_model()
    return True


class Sampler(sampling.Sampler):
    def __init__(self, p):
        from modules.sd_samplers_cfg_denoiser import CFGDenoiser

        alphas = shared.sd_model.alphas_cumprod
        super().__init__(CFGDenoiser(self), ((1 - alphas) / alphas) ** 0.5, p.sampler_name == "Heun")
