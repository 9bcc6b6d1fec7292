"""The average of weights against its closed form."""
import torch
from torch import nn

from hypernetworks.ema import Average


def trajectory(steps):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 2, generator=generator, dtype=torch.float64) for _ in range(steps + 1)]


def followed(decay, weights):
    network = nn.Linear(2, 3, bias=False).double()
    network.weight.data = weights[0].clone()
    average = Average(network, decay)
    for step, value in enumerate(weights[1:], 1):
        network.weight.data.copy_(value)
        average.update(step)
    return network, average


def test_the_average_is_the_sum_of_all_weights_each_times_what_later_steps_left_of_it():
    weights, decay = trajectory(60), 0.8
    _, average = followed(decay, weights)
    shares = [min(decay, (1 + step) / (10 + step)) for step in range(1, 61)]  # of the old average that a step keeps
    total = weights[0] * torch.tensor(shares).double().prod()
    for step in range(1, 61):
        total += (1 - shares[step - 1]) * torch.tensor(shares[step:], dtype=torch.float64).prod() * weights[step]
    assert torch.allclose(average.weights["weight"], total, rtol=1e-6)


def test_after_many_steps_it_is_the_plain_moving_average():
    weights = trajectory(400)
    _, average = followed(0.9, weights)
    wanted = sum(0.1 * 0.9**age * weights[400 - age] for age in range(300))
    assert torch.allclose(average.weights["weight"], wanted, atol=1e-6)


def test_it_is_shown_for_a_while_and_the_weights_come_back_bit_for_bit():
    network, average = followed(0.9, trajectory(5))
    before = network.weight.detach().clone()
    with average.shown():
        assert torch.equal(network.weight, average.weights["weight"])
    assert torch.equal(network.weight, before) and not torch.equal(before, average.weights["weight"])
    average.settle()
    assert torch.equal(network.weight, average.weights["weight"])
