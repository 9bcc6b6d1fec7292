"""The UNet with its schedule.

KModel                   Forge 7
KModel.apply_model       Forge 25
KModel.memory_required   Forge 48
"""
import torch
from backend.modules.k_prediction import Prediction
from torch import nn


class KModel(nn.Module):
    def __init__(self, model, diffusers_scheduler, k_predictor=None, config=None):
        super().__init__()
        self.diffusion_model, self.predictor = model, k_predictor or Prediction(prediction_type=diffusers_scheduler)
        self.storage_dtype = self.computation_dtype = torch.float32

    def apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        given = self.predictor.calculate_input(t, x).to(self.computation_dtype)
        time = self.predictor.timestep(t).float()
        output = self.diffusion_model(given, time, context=c_crossattn, control=control, transformer_options=transformer_options, **kwargs).float()
        return self.predictor.calculate_denoised(t, output, x)

    def memory_required(self, input_shape):
        return input_shape[0]
