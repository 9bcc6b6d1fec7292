"""Moves models to where they compute and back; here each move copies, in the mode that is on.

LoadedModel         Forge 443
load_models_gpu     Forge 614
unload_all_models   Forge 1208
get_free_memory     Forge 1008
"""
import torch
from web_ui.moving import Memory

memory = Memory()
LARGEST = 1 << 40


class LoadedModel:
    def __init__(self, model):
        self.model = model

    def __eq__(self, other):
        return self.model is other.model


def load_models_gpu(models, memory_required=0, hard_memory_preservation=0):
    memory.load(models)


def unload_all_models():
    memory.unload()


def get_free_memory(dev=None, torch_free_too=False):
    return memory.free


def get_torch_device():
    return torch.device("cpu")
