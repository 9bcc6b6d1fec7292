"""The UNet's.

UnetPatcher         Forge 8
UnetPatcher.clone   Forge 26
"""
from backend.patcher.base import ModelPatcher


class UnetPatcher(ModelPatcher):
    def clone(self):
        return super().clone()
