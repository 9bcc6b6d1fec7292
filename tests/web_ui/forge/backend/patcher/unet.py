"""The UNet's.

UnetPatcher         Forge
UnetPatcher.clone   Forge
"""
from backend.patcher.base import ModelPatcher


class UnetPatcher(ModelPatcher):
    def clone(self):
        return super().clone()
