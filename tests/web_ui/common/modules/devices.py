"""All on the CPU, in float32.

autocast            A1111    Forge    reForge
without_autocast    A1111    Forge    reForge
torch_gc            A1111    Forge    reForge
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
