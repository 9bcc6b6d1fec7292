"""LoRA in the weights, and out again.

LoraLoader           Forge 344
LoraLoader.refresh   Forge 352
"""
import torch
from torch import nn


class LoraLoader:
    def __init__(self, model):
        self.model, self.backup, self.loaded_hash = model, {}, str([])

    @torch.inference_mode()
    def refresh(self, lora_patches, offload_device=None, force_refresh=False):
        """`lora_patches`: for each file what is added to which weight."""
        hashes = str(list(lora_patches))
        if hashes == self.loaded_hash and not force_refresh:
            return
        for name, weight in self.backup.items():
            self._put(name, weight)
        self.backup = {}
        for patches in lora_patches.values():
            for name, delta in patches.items():
                weight = self.model.get_parameter(name)
                self.backup.setdefault(name, nn.Parameter(weight.clone(), requires_grad=False))  # as between two devices
                self._put(name, nn.Parameter(weight + delta, requires_grad=False))
        self.loaded_hash = hashes

    def _put(self, name, parameter):
        owner, _, last = name.rpartition(".")
        self.model.get_submodule(owner)._parameters[last] = parameter
