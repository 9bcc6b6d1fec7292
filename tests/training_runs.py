"""What tests of training look at."""
import torch


def losses(found):
    """Of the steps among a run's events."""
    return [event.loss for event in found if event.kind == "step"]


def weights(network):
    """A copy of them."""
    return {name: value.clone() for name, value in network.state_dict().items()}


def equal(a, b):
    """Whether two sets of weights are, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
