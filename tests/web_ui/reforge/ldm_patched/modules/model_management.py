"""Moves models to where they compute and back.

load_models_gpu     reForge 618
unload_all_models   reForge 1392
get_free_memory     reForge 1157
"""
from web_ui.moving import Memory

memory = Memory()


def load_models_gpu(models, memory_required=0, force_patch_weights=False, minimum_memory_required=None, force_full_load=False):
    memory.load(models)


def unload_all_models():
    memory.unload()


def get_free_memory(dev=None, torch_free_too=False):
    return memory.free
