"""Losses against their formulas, written out per sample."""
import pytest
import torch

from hypernetworks.losses import add_noise, denoising_loss, denoising_target, min_snr_weights


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
])
def test_loss_is_the_weighted_mean_of_the_samples(kind, formula):
    predicted, target, weights = torch.randn(2, 1, 2, 2) * 2, torch.randn(2, 1, 2, 2), torch.tensor([1.0, 0.25])
    by_hand = sum(
        float(weights[i]) * sum(formula(float(d)) for d in (predicted[i] - target[i]).flatten()) / 4 for i in range(2)
    ) / 2
    assert float(denoising_loss(predicted, target, weights, kind)) == pytest.approx(by_hand, rel=1e-5)
