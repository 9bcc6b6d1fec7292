"""Tags in prompts. All networks hear of the first prompt's tags only, and each hears of every batch, be it of none of its own.

initialize                        A1111 13    Forge 13    reForge 13
register_extra_network            A1111 18    Forge 18    reForge 18
register_default_extra_networks   A1111 26    Forge 26    reForge 26
ExtraNetworkParams                A1111 31    Forge 31    reForge 31
ExtraNetwork                      A1111 48    Forge 48    reForge 48
ExtraNetwork.activate             A1111 52    Forge 52    reForge 52
ExtraNetwork.deactivate           A1111 82    Forge 82    reForge 82
activate                          A1111 126   Forge 126   reForge 126
deactivate                        A1111 153   Forge 153   reForge 153
parse_prompt                      A1111 178   Forge 178   reForge 178
parse_prompts                     A1111 194   Forge 194   reForge 194
"""
import re
from collections import defaultdict

from modules import errors

TAG = re.compile(r"<(\w+):([^>]+)>")
extra_network_registry = {}


def initialize():
    extra_network_registry.clear()


def register_extra_network(extra_network):
    extra_network_registry[extra_network.name] = extra_network


def register_default_extra_networks():
    from modules.extra_networks_hypernet import ExtraNetworkHypernet

    register_extra_network(ExtraNetworkHypernet())


class ExtraNetworkParams:
    def __init__(self, items=None):
        self.items = items or []

    def __eq__(self, other):
        return self.items == other.items


class ExtraNetwork:
    def __init__(self, name):
        self.name = name

    def activate(self, p, params_list):
        raise NotImplementedError

    def deactivate(self, p):
        raise NotImplementedError


def activate(p, extra_network_data):
    """One that fails with its own tags is called again without."""
    done = []
    mentioned = [(name, arguments) for name, arguments in extra_network_data.items() if name in extra_network_registry]
    for name, arguments in [*mentioned, *((name, []) for name in extra_network_registry)]:
        if name in done:
            continue
        try:
            extra_network_registry[name].activate(p, list(arguments))
            done.append(name)
        except Exception as error:
            errors.display(error, f"activating extra network {name}")
    if p.scripts is not None:
        p.scripts.after_extra_networks_activate(
            p, batch_number=p.iteration, prompts=p.prompts, seeds=p.seeds, subseeds=p.subseeds, extra_network_data=extra_network_data
        )


def deactivate(p, extra_network_data):
    for name, extra_network in extra_network_registry.items():
        try:
            extra_network.deactivate(p)
        except Exception as error:
            errors.display(error, f"deactivating extra network {name}")


def parse_prompt(prompt):
    found = defaultdict(list)
    for tag in TAG.finditer(prompt):
        found[tag[1]].append(ExtraNetworkParams(items=tag[2].split(":")))
    return TAG.sub("", prompt), found


def parse_prompts(prompts):
    parsed = [parse_prompt(prompt) for prompt in prompts]
    return [text for text, _ in parsed], parsed[0][1] if parsed else None
