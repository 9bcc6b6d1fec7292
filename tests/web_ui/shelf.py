"""Hypernetworks for the models of these web UIs, and what a tag asks of them."""
from hypernetworks.attention import Strength
from hypernetworks.files import save
from hypernetworks.residual import ResidualHypernetwork, ResidualStructure


def network(name, widths=(8, 16), seed=1):
    """One that changes what it is on by more than rounding."""
    made = ResidualHypernetwork({width: width for width in widths}, ResidualStructure(activation="relu"), initialization="KaimingNormal", seed=seed)
    made.name = name
    return made.eval()


OIL, INK, XL = network("oil", seed=1), network("ink", seed=2), network("xl", (8, 24), seed=3)
ALL, FOREIGN = network("all", (8, 12, 16), seed=4), network("foreign", (320, 768), seed=5)


def fill(ui):
    """Writes them where the web UI looks."""
    for one in (OIL, INK, XL, ALL, FOREIGN):
        save(one, ui.networks / f"{one.name}.safetensors")


def on(network, overall=1.0, **more):
    """What plain hooks take."""
    return network, Strength(overall, **more)
