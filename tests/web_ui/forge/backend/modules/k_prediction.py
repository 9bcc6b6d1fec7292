"""The noise schedule, and what the UNet's output means.

Prediction                              Forge 113
Prediction.timestep                     Forge 148
AbstractPrediction                      Forge 67
AbstractPrediction.calculate_input      Forge 74
AbstractPrediction.calculate_denoised   Forge 81
"""
from torch import nn
from web_ui.parts import alphas_cumprod


class AbstractPrediction(nn.Module):
    def __init__(self, sigma_data=1.0, prediction_type="epsilon"):
        super().__init__()
        self.sigma_data, self.prediction_type = sigma_data, prediction_type

    def calculate_input(self, sigma, noise):
        return noise / (sigma[:, None, None, None] ** 2 + 1) ** 0.5

    def calculate_denoised(self, sigma, model_output, model_input):
        sigma = sigma[:, None, None, None]
        if self.prediction_type == "v_prediction":
            return model_input / (sigma**2 + 1) - model_output * sigma / (sigma**2 + 1) ** 0.5
        return model_input - model_output * sigma


class Prediction(AbstractPrediction):
    def __init__(self, sigma_data=1.0, prediction_type="eps"):
        super().__init__(sigma_data, prediction_type)
        alphas = alphas_cumprod()
        self.register_buffer("sigmas", ((1 - alphas) / alphas) ** 0.5)

    def timestep(self, sigma):
        return (sigma[:, None].log() - self.sigmas.log()).abs().argmin(1)
