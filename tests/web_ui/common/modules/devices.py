"""All on the CPU, in float32.

autocast           A1111 205   Forge 85   reForge 94
without_autocast   A1111 224   Forge 89   reForge 98
torch_gc           A1111 77    Forge 38   reForge 38
"""
import contextlib

import torch

cpu = device = torch.device("cpu")
dtype = dtype_vae = dtype_unet = torch.float32
unet_needs_upcast = False


def autocast(disable=False):
    return contextlib.nullcontext()


def without_autocast(disable=False):
    return contextlib.nullcontext()


def torch_gc():
    pass
