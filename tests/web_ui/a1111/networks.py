"""LoRA, which goes into a layer's own weights when the layer is used next, and out of them in the same way.

load_networks                             A1111 extensions-builtin/Lora/networks.py:250
assign_network_names_to_compvis_modules   A1111 extensions-builtin/Lora/networks.py:120
network_restore_weights_from_backup       A1111 extensions-builtin/Lora/networks.py:328
network_apply_weights                     A1111 extensions-builtin/Lora/networks.py:354
network_reset_cached_weight               A1111 extensions-builtin/Lora/networks.py:488
network_Linear_forward                    A1111 extensions-builtin/Lora/networks.py:494
network_Linear_load_state_dict            A1111 extensions-builtin/Lora/networks.py:503
available_networks                        A1111 extensions-builtin/Lora/networks.py:635
loaded_networks                           A1111 extensions-builtin/Lora/networks.py:637

`available_networks` has for each name what is added to which weight: {"unet": {...}, "text": {...}}. Only linear layers take part.
"""
import torch
from modules import shared

available_networks, loaded_networks = {}, []
originals = None


class Network:
    def __init__(self, name, modules, te_multiplier, unet_multiplier):
        self.name, self.modules, self.te_multiplier, self.unet_multiplier = name, modules, te_multiplier, unet_multiplier

    def delta(self, layer_name):
        part = layer_name.partition(".")[0]
        added = self.modules.get(layer_name)
        return None if added is None else added * (self.te_multiplier if part == "text" else self.unet_multiplier)


class LoraPatches:
    """A layer's forward is the class's, for all layers of the process."""

    def __init__(self):
        self.Linear_forward, torch.nn.Linear.forward = torch.nn.Linear.forward, network_Linear_forward
        self.Linear_load_state_dict, torch.nn.Linear._load_from_state_dict = torch.nn.Linear._load_from_state_dict, network_Linear_load_state_dict

    def undo(self):
        torch.nn.Linear.forward, torch.nn.Linear._load_from_state_dict = self.Linear_forward, self.Linear_load_state_dict


def assign_network_names_to_compvis_modules(sd_model):
    for part, module in (("unet", sd_model.model.diffusion_model), ("text", sd_model.cond_stage_model)):
        for name, layer in module.named_modules():
            layer.network_layer_name = f"{part}.{name}"


def load_networks(names, te_multipliers=None, unet_multipliers=None, dyn_dims=None):
    assign_network_names_to_compvis_modules(shared.sd_model)
    loaded_networks.clear()
    for place, name in enumerate(names):
        found = available_networks[name]
        modules = {f"{part}.{key.removesuffix('.weight')}": added for part in found for key, added in found[part].items()}
        te, unet = (given[place] if given else 1.0 for given in (te_multipliers, unet_multipliers))
        loaded_networks.append(Network(name, modules, te, unet))


def network_restore_weights_from_backup(self):
    if getattr(self, "network_weights_backup", None) is not None:
        self.weight.copy_(self.network_weights_backup)


def network_apply_weights(self):
    layer_name = getattr(self, "network_layer_name", None)
    if layer_name is None:
        return
    wanted = tuple((network.name, network.te_multiplier, network.unet_multiplier) for network in loaded_networks)
    if getattr(self, "network_weights_backup", None) is None and wanted:
        self.network_weights_backup = self.weight.detach().clone()
    if getattr(self, "network_current_names", ()) == wanted:
        return
    network_restore_weights_from_backup(self)
    for network in loaded_networks:
        if (added := network.delta(layer_name)) is not None:
            with torch.no_grad():
                self.weight.copy_(self.weight + added)
    self.network_current_names = wanted


def network_Linear_forward(self, input):
    network_apply_weights(self)
    return originals.Linear_forward(self, input)


def network_reset_cached_weight(self):
    self.network_current_names, self.network_weights_backup = (), None


def network_Linear_load_state_dict(self, *args, **kwargs):
    network_reset_cached_weight(self)
    return originals.Linear_load_state_dict(self, *args, **kwargs)
