"""The web UI's own hypernetworks. What it puts on the model stands in `shared.loaded_hypernetworks`, as in A1111.

ExtraNetworkHypernet              A1111 5    Forge 5    reForge 5
ExtraNetworkHypernet.activate     A1111 9    Forge 9    reForge 9
ExtraNetworkHypernet.deactivate   A1111 27   Forge 27   reForge 27
"""
from modules import extra_networks, shared


class ExtraNetworkHypernet(extra_networks.ExtraNetwork):
    def __init__(self):
        super().__init__("hypernet")

    def activate(self, p, params_list):
        shared.loaded_hypernetworks[:] = [params.items[0] for params in params_list]

    def deactivate(self, p):
        pass
