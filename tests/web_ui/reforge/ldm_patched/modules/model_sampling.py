"""The noise schedule, and what the UNet's output means: a class of its own for each kind.

EPS                               reForge 24
EPS.calculate_input               reForge 25
EPS.calculate_denoised            reForge 29
V_PREDICTION                      reForge 46
V_PREDICTION.calculate_denoised   reForge 47
ModelSamplingDiscrete             reForge 100
ModelSamplingDiscrete.timestep    reForge 157
"""
from torch import nn
from web_ui.parts import alphas_cumprod


class EPS:
    def calculate_input(self, sigma, noise):
        return noise / (sigma[:, None, None, None] ** 2 + 1) ** 0.5

    def calculate_denoised(self, sigma, model_output, model_input):
        return model_input - model_output * sigma[:, None, None, None]


class V_PREDICTION(EPS):
    def calculate_denoised(self, sigma, model_output, model_input):
        sigma = sigma[:, None, None, None]
        return model_input / (sigma**2 + 1) - model_output * sigma / (sigma**2 + 1) ** 0.5


class ModelSamplingDiscrete(nn.Module):
    def __init__(self, model_config=None, zsnr=None):
        super().__init__()
        alphas = alphas_cumprod()
        self.register_buffer("sigmas", ((1 - alphas) / alphas) ** 0.5)

    def timestep(self, sigma):
        return (sigma[:, None].log() - self.sigmas.log()).abs().argmin(1)
