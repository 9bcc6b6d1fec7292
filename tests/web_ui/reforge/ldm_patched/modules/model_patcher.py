"""What may be changed about a model for one job.

ModelPatcher                                   reForge 204
ModelPatcher.clone                             reForge 270
ModelPatcher.set_model_unet_function_wrapper   reForge 385
"""
import copy

import torch

CPU = torch.device("cpu")


class ModelPatcher:
    def __init__(self, model, load_device=CPU, offload_device=CPU, size=0, weight_inplace_update=False):
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        self.model_options = {"transformer_options": {}}

    def clone(self):
        made = type(self)(self.model, self.load_device, self.offload_device)
        made.model_options = copy.deepcopy(self.model_options)
        return made

    def set_model_unet_function_wrapper(self, unet_wrapper_function):
        self.model_options["model_function_wrapper"] = unet_wrapper_function
