"""Losses against their formulas, written out per sample."""
import math

import pytest
import torch

from hypernetworks.errors import ConfigError
from hypernetworks.losses import (
    add_noise,
    denoising_loss,
    denoising_target,
    huber,
    huber_deltas,
    min_snr_weights,
    own_loss,
    timestep_weights,
)


def test_min_snr_weights_are_the_papers():
    alphas = torch.tensor([0.9991, 0.9, 0.5, 0.1, 0.0047], dtype=torch.float64)
    snr = alphas / (1 - alphas)
    capped = torch.minimum(snr, torch.tensor(5.0, dtype=torch.float64))
    assert torch.allclose(min_snr_weights(alphas, 5, "epsilon"), capped / snr)
    assert torch.allclose(min_snr_weights(alphas, 5, "v_prediction"), capped / (snr + 1))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_weights_are_numbers_at_both_ends_of_the_schedule(kind):
    assert torch.isfinite(min_snr_weights(torch.tensor([0.0, 1.0]), 5, kind)).all()


def test_no_gamma_weighs_all_alike():
    assert min_snr_weights(torch.tensor([0.9, 0.1]), 0, "epsilon").tolist() == [1, 1]


def test_the_clean_picture_comes_back_from_either_prediction():
    x, noise, a = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0.99, 0.5, 0.01])
    noisy, root, other = add_noise(x, noise, a), a.sqrt().view(-1, 1, 1, 1), (1 - a).sqrt().view(-1, 1, 1, 1)
    from_epsilon = (noisy - other * denoising_target(x, noise, a, "epsilon")) / root
    from_v = root * noisy - other * denoising_target(x, noise, a, "v_prediction")
    assert torch.allclose(from_epsilon, x, atol=1e-4)
    assert torch.allclose(from_v, x, atol=1e-4)


@pytest.mark.parametrize("kind, formula", [
    ("mse", lambda d: d * d),
    ("l1", abs),
    ("huber", lambda d: 0.5 * d * d if abs(d) < 1 else abs(d) - 0.5),
    ("log_cosh", lambda d: math.log(math.cosh(d))),
])
def test_loss_is_the_weighted_mean_of_the_samples(kind, formula):
    predicted, target, weights = torch.randn(2, 1, 2, 2) * 2, torch.randn(2, 1, 2, 2), torch.tensor([1.0, 0.25])
    by_hand = sum(
        float(weights[i]) * sum(formula(float(d)) for d in (predicted[i] - target[i]).flatten()) / 4 for i in range(2)
    ) / 2
    assert float(denoising_loss(predicted, target, weights, kind)) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("weighting, formula", [
    ("debiased", lambda snr: snr**-0.5), ("p2", lambda snr: 1 / (1 + snr)), ("none", lambda snr: 1 + 0 * snr),
    ("min_snr", lambda snr: snr.clamp(max=3) / snr),
])
def test_weights_by_noise_are_the_papers(weighting, formula):
    alphas = torch.tensor([0.9991, 0.9, 0.5, 0.1, 0.0047], dtype=torch.float64)
    assert torch.allclose(timestep_weights(alphas, weighting, 3, "epsilon"), formula(alphas / (1 - alphas)))


@pytest.mark.parametrize("weighting", ["debiased", "p2", "min_snr"])
def test_an_error_of_v_counts_as_the_error_of_the_noise_that_it_makes(weighting):
    a = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    x, noise = torch.randn(3, 1, 4, 4, dtype=torch.float64), torch.randn(3, 1, 4, 4, dtype=torch.float64)
    noisy, v = add_noise(x, noise, a), denoising_target(x, noise, a, "v_prediction")
    guess = v + torch.randn_like(v)
    root, other = a.sqrt().view(-1, 1, 1, 1), (1 - a).sqrt().view(-1, 1, 1, 1)
    as_noise = root * guess + other * noisy  # what a guess of v says of the noise
    of_noise = ((as_noise - noise) ** 2).flatten(1).mean(1) * timestep_weights(a, weighting, 5, "epsilon")
    of_v = ((guess - v) ** 2).flatten(1).mean(1) * timestep_weights(a, weighting, 5, "v_prediction")
    assert torch.allclose(of_noise, of_v)


@pytest.mark.parametrize("weighting", ["debiased", "p2", "min_snr", "none"])
@pytest.mark.parametrize("schedule", ["constant", "exponential", "snr"])
def test_at_zero_terminal_snr_a_v_loss_is_a_number(weighting, schedule):
    alphas, timesteps = torch.tensor([0.9, 0.0]), torch.tensor([10, 999])
    x, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    target = denoising_target(x, noise, alphas, "v_prediction")
    assert torch.equal(target[1], -x[1])
    weights, deltas = timestep_weights(alphas, weighting, 5, "v_prediction"), huber_deltas(alphas, timesteps, 1000, 0.1, schedule)
    predicted = torch.zeros_like(x, requires_grad=True)
    for kind in ("mse", "huber", "l1", "log_cosh"):
        loss = denoising_loss(predicted, target, weights, kind, deltas)
        (gradient,) = torch.autograd.grad(loss, predicted)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()


def test_huber_is_quadratic_below_its_delta_and_linear_above():
    errors = torch.tensor([0.05, 0.3, 4.0]).repeat(2, 1)
    wanted = [[0.5 * d * d if d < delta else delta * (d - 0.5 * delta) for d in (0.05, 0.3, 4.0)] for delta in (0.1, 1.0)]
    assert torch.allclose(huber(errors, torch.zeros(2, 3), torch.tensor([0.1, 1.0])), torch.tensor(wanted))


def test_huber_deltas_are_the_papers():
    alphas, timesteps = torch.tensor([0.99, 0.5, 0.01]), torch.tensor([50, 500, 950])
    sigmas = ((1 - alphas) / alphas).sqrt()
    assert huber_deltas(alphas, timesteps, 1000, 0.1, "constant").tolist() == pytest.approx([0.1] * 3)
    assert huber_deltas(alphas, timesteps, 1000, 0.1, "exponential").tolist() == pytest.approx([math.exp(math.log(0.1) * t / 1000) for t in (50, 500, 950)])
    assert huber_deltas(alphas, timesteps, 1000, 0.1, "snr").tolist() == pytest.approx([0.9 / (1 + float(s)) ** 2 + 0.1 for s in sigmas])


@pytest.mark.parametrize("kind", ["mse", "huber", "l1", "log_cosh", lambda predicted, target: (predicted - target) ** 4])
def test_what_a_mask_leaves_out_gets_no_gradient(kind):
    predicted, target = torch.randn(2, 4, 8, 8, requires_grad=True), torch.randn(2, 4, 8, 8)
    area = torch.ones(2, 1, 8, 8)
    area[..., 4:] = 0
    denoising_loss(predicted, target, torch.ones(2), kind, 1.0, area).backward()
    assert (predicted.grad[..., 4:] == 0).all() and (predicted.grad[..., :4] != 0).all()


def test_a_mask_weighs_the_errors_of_its_places():
    predicted, target, area = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.rand(2, 1, 8, 8)
    weights = torch.tensor([1.0, 0.5])
    wanted = (((predicted - target) ** 2 * area).mean((1, 2, 3)) * weights).mean()
    assert torch.allclose(denoising_loss(predicted, target, weights, area=area), wanted)


def charbonnier(predicted, target):
    return ((predicted - target) ** 2 + 1e-6).sqrt()


def by_sample(predicted, target):
    return (predicted - target).abs().amax((1, 2, 3))


def test_a_users_own_function_is_found_and_used():
    predicted, target, weights = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([1.0, 0.5, 2.0])
    found = own_loss(f"{__name__}.charbonnier")
    assert torch.allclose(denoising_loss(predicted, target, weights, found), (charbonnier(predicted, target).mean((1, 2, 3)) * weights).mean())
    found = own_loss(f"{__name__}.by_sample")
    assert torch.allclose(denoising_loss(predicted, target, weights, found), (by_sample(predicted, target) * weights).mean())


@pytest.mark.parametrize("path", ["", "mse", "no_such_module.loss", "math.no_such_loss", ".math.cos", "math.pi", "a b.c", "math.", "\0.x"])
def test_what_is_no_function_is_refused(path):
    with pytest.raises(ConfigError, match="Own loss"):
        own_loss(path)


@pytest.mark.parametrize("function, area", [
    (lambda predicted, target: (predicted - target).mean(), None), (lambda predicted, target: 3.0, None),
    (lambda predicted, target: predicted[:, :1], None), (by_sample, torch.ones(2, 1, 8, 8)),
])
def test_errors_of_another_shape_are_refused(function, area):
    with pytest.raises(ConfigError, match="Own loss.*wanted"):
        denoising_loss(torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.ones(2), function, area=area)
