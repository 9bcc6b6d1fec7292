"""What may be changed about a model for one job. A copy for each job: its options are copied deeply.

ModelPatcher                                   Forge 51
ModelPatcher.clone                             Forge 79
ModelPatcher.refresh_loras                     Forge 125
ModelPatcher.memory_required                   Forge 129
ModelPatcher.set_model_unet_function_wrapper   Forge 146
"""
import copy

import torch
from backend.patcher.lora import LoraLoader

CPU = torch.device("cpu")


class ModelPatcher:
    def __init__(self, model, load_device=CPU, offload_device=CPU, size=0, current_device=None, **kwargs):
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        self.lora_patches, self.model_options = {}, {"transformer_options": {}}
        if not hasattr(model, "lora_loader"):
            model.lora_loader = LoraLoader(model)
        self.lora_loader = model.lora_loader

    def clone(self):
        made = type(self)(self.model, self.load_device, self.offload_device)
        made.lora_patches, made.model_options = self.lora_patches.copy(), copy.deepcopy(self.model_options)
        return made

    def refresh_loras(self):
        self.lora_loader.refresh(lora_patches=self.lora_patches, offload_device=self.offload_device)

    def memory_required(self, input_shape):
        return self.model.memory_required(input_shape=input_shape)

    def set_model_unet_function_wrapper(self, unet_wrapper_function):
        self.model_options["model_function_wrapper"] = unet_wrapper_function
