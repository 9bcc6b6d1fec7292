"""What every part of a web UI reaches for.

OptionInfo             A1111 73   Forge 78   reForge 77
hypernetworks          A1111 27   Forge 32   reForge 31
loaded_hypernetworks   A1111 29   Forge 34   reForge 33
interrogator           A1111 35   Forge 40   reForge 39
opts                   A1111 40   Forge 45   reForge 44
state                  A1111 31   Forge 36   reForge 35
cmd_opts               A1111 10   Forge 15   reForge 14
"""
from types import SimpleNamespace

from modules import options, shared_state

OptionInfo = options.OptionInfo
DEFAULTS = {
    "sd_hypernetwork": "None", "extra_networks_default_multiplier": 1.0, "emphasis": "Original", "CLIP_stop_at_last_layers": 1,
    "samples_format": "png", "batch_cond_uncond": True, "pad_cond_uncond": False, "pad_cond_uncond_v0": False, "s_min_uncond": 0.0,
    "unload_models_when_training": False, "sd_model_checkpoint": "base", "sd_checkpoints_limit": 1, "return_grid": False,
    "infotext_skip_pasting": [], "hires_fix_refiner_pass": "second pass", "sd_unet": "Automatic", "forge_additional_modules": [],
    "token_merging_ratio": 0.0,
}  # fmt: skip

cmd_opts = SimpleNamespace(
    hypernetwork_dir=None, lowvram=False, medvram=False, medvram_sdxl=False, api=False, nowebui=False, api_auth=None, listen=False, share=False,
    ngrok=None, server_name=None,
)  # fmt: skip
opts = options.Options({name: OptionInfo(default) for name, default in DEFAULTS.items()})
state = shared_state.State()
hypernetworks = {}
loaded_hypernetworks = []
interrogator = None


def __getattr__(name):
    """`sd_model` is loaded when it is asked for (modules/shared_items.py)."""
    if name != "sd_model":
        raise AttributeError(name)
    from modules import sd_models

    return sd_models.model_data.get_sd_model()
