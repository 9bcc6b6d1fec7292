"""The UNet with its schedule.

model_sampling              reForge 72
BaseModel                   reForge 115
BaseModel.apply_model       reForge 153
BaseModel.get_dtype         reForge 197
BaseModel.memory_required   reForge 346
"""
from types import SimpleNamespace

import torch
from ldm_patched.modules.model_sampling import EPS, V_PREDICTION, ModelSamplingDiscrete
from torch import nn


def model_sampling(model_config, model_type):
    kind = V_PREDICTION if model_type == "v_prediction" else EPS

    class ModelSampling(ModelSamplingDiscrete, kind):
        pass

    return ModelSampling(model_config)


class BaseModel(nn.Module):
    def __init__(self, model_config, model_type="epsilon", device=None, unet_model=None):
        super().__init__()
        self.diffusion_model, self.manual_cast_dtype = unet_model, None
        self.model_sampling = model_sampling(model_config, model_type)
        self.model_config = SimpleNamespace(latent_format=SimpleNamespace(scale_factor=0.18215))

    def apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        given, time = self.model_sampling.calculate_input(t, x), self.model_sampling.timestep(t).float()
        output = self.diffusion_model(given, time, context=c_crossattn, control=control, transformer_options=transformer_options, **kwargs).float()
        return self.model_sampling.calculate_denoised(t, output, x)

    def get_dtype(self):
        return torch.float32

    def memory_required(self, input_shape, cond_shapes=None):
        return input_shape[0]
