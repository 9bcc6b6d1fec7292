"""The tag <lora:name:strength>.

ExtraNetworkLora              A1111 5    Forge extensions-builtin/sd_forge_lora/extra_networks_lora.py:5    reForge 5
ExtraNetworkLora.activate     A1111 12   Forge extensions-builtin/sd_forge_lora/extra_networks_lora.py:14   reForge 14
ExtraNetworkLora.deactivate   A1111 63   Forge extensions-builtin/sd_forge_lora/extra_networks_lora.py:58   reForge 58
"""
import networks
from modules import extra_networks


class ExtraNetworkLora(extra_networks.ExtraNetwork):
    def __init__(self):
        super().__init__("lora")

    def activate(self, p, params_list):
        """What a tag asks for stays until the next job asks for something else."""
        strengths = [float(params.items[1]) for params in params_list]
        networks.load_networks([params.items[0] for params in params_list], strengths, strengths)

    def deactivate(self, p):
        pass
