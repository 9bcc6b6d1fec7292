"""The extension for LoRA, which every web UI brings.

before_ui   A1111 19   Forge extensions-builtin/sd_forge_lora/scripts/lora_script.py:14   reForge 19
"""
import extra_networks_lora
import networks
from modules import extra_networks, script_callbacks


def before_ui():
    networks.extra_network_lora = extra_networks_lora.ExtraNetworkLora()
    extra_networks.register_extra_network(networks.extra_network_lora)


if hasattr(networks, "LoraPatches"):
    networks.originals = networks.LoraPatches()
    script_callbacks.on_script_unloaded(networks.originals.undo)
script_callbacks.on_before_ui(before_ui)
