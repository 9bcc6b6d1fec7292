"""The web UI's own hypernetworks. What it puts on the model stands in `shared.loaded_hypernetworks`, as in A1111.

ExtraNetworkHypernet              A1111    Forge    reForge
ExtraNetworkHypernet.activate     A1111    Forge    reForge
ExtraNetworkHypernet.deactivate   A1111    Forge    reForge
"""
from modules import extra_networks, shared


class ExtraNetworkHypernet(extra_networks.ExtraNetwork):
    def __init__(self):
        super().__init__("hypernet")

    def activate(self, p, params_list):
        shared.loaded_hypernetworks[:] = [params.items[0] for params in params_list]

    def deactivate(self, p):
        pass
