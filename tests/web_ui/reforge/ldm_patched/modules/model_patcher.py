"""What may be changed about a model for one job.

ModelPatcher                                   reForge 204
ModelPatcher.clone                             reForge 270
ModelPatcher.set_model_unet_function_wrapper   reForge 385
ModelPatcher.add_patches                       reForge 502
ModelPatcher.patch_weight_to_device            reForge 559
ModelPatcher.unpatch_model                     reForge 727
ModelPatcher.partially_load                    reForge 831
"""
import copy
import uuid

import torch
from torch import nn

CPU = torch.device("cpu")

CPU = torch.device("cpu")


class ModelPatcher:
    def __init__(self, model, load_device=CPU, offload_device=CPU, size=0, weight_inplace_update=False):
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        self.model_options = {"transformer_options": {}}
        self.patches, self.backup, self.patches_uuid = {}, {}, uuid.uuid4()
        if not hasattr(model, "current_weight_patches_uuid"):
            model.current_weight_patches_uuid = None

    def clone(self):
        made = type(self)(self.model, self.load_device, self.offload_device)
        made.model_options = copy.deepcopy(self.model_options)
        made.patches, made.backup = {name: list(added) for name, added in self.patches.items()}, self.backup
        made.patches_uuid = self.patches_uuid
        return made

    def set_model_unet_function_wrapper(self, unet_wrapper_function):
        self.model_options["model_function_wrapper"] = unet_wrapper_function

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        for name, added in patches.items():
            self.patches.setdefault(name, []).append(added * strength_patch)
        self.patches_uuid = uuid.uuid4()

    def partially_load(self, device_to, extra_memory=0, force_patch_weights=False):
        """The weights with what this patcher adds, and without what another one has added."""
        if self.model.current_weight_patches_uuid == self.patches_uuid:
            return
        self.unpatch_model()
        for name in self.patches:
            self.patch_weight_to_device(name, device_to)
        self.model.current_weight_patches_uuid = self.patches_uuid

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        for name, weight in self.backup.items():
            self._put(name, weight)
        self.backup.clear()
        self.model.current_weight_patches_uuid = None

    def patch_weight_to_device(self, key, device_to=None, inplace_update=False):
        weight = self.model.get_parameter(key)
        self.backup[key] = weight.clone()  # as between two devices
        self._put(key, weight + sum(self.patches[key]))

    def _put(self, name, value):
        owner, _, last = name.rpartition(".")
        setattr(self.model.get_submodule(owner), last, nn.Parameter(value, requires_grad=False))
