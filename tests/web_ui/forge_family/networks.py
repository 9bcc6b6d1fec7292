"""LoRA, which goes into copies of the checkpoint's patchers; these put it into the weights when they are loaded.

load_networks        Forge extensions-builtin/sd_forge_lora/networks.py:68    reForge extensions-builtin/Lora/networks.py:51
available_networks   Forge extensions-builtin/sd_forge_lora/networks.py:206   reForge extensions-builtin/Lora/networks.py:264
loaded_networks      Forge extensions-builtin/sd_forge_lora/networks.py:208   reForge extensions-builtin/Lora/networks.py:266

`available_networks` has for each name what is added to which weight: {"unet": {...}, "text": {...}}.
"""
from types import SimpleNamespace

from modules import sd_models

available_networks, loaded_networks = {}, []


def load_networks(names, te_multipliers=None, unet_multipliers=None, dyn_dims=None):
    current = sd_models.model_data.get_sd_model()
    loaded_networks[:] = names
    targets = list(zip(names, unet_multipliers or [1.0] * len(names), te_multipliers or [1.0] * len(names), strict=True))
    if getattr(current, "current_lora_hash", str([])) == str(targets):
        return
    current.current_lora_hash = str(targets)
    objects = current.forge_objects
    objects.unet, objects.clip = current.forge_objects_original.unet, current.forge_objects_original.clip
    for name, strength_model, strength_clip in targets:
        found = available_networks[name]
        objects.unet = _patched(objects.unet, name, found["unet"], "diffusion_model.", strength_model)
        patcher = _patched(objects.clip.patcher, name, found["text"], sd_models.TEXT_PREFIX, strength_clip)
        objects.clip = SimpleNamespace(**vars(objects.clip) | {"patcher": patcher})
    current.forge_objects_after_applying_lora = objects.shallow_copy()


def _patched(patcher, filename, added, prefix, strength):
    patcher = patcher.clone()
    sd_models.add_patches(patcher, filename, {prefix + name: delta for name, delta in added.items()}, strength)
    return patcher
