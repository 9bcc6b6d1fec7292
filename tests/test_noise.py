"""The noise that pictures are trained with: its statistics, its schedule, and how much of it when."""
import math
from statistics import NormalDist

import pytest
import torch

from hypernetworks.config import TrainingConfig, read
from hypernetworks.errors import ConfigError
from hypernetworks.noise import draw_noise, noise_schedule, timestep_shape, zero_terminal_snr
from hypernetworks.plan import timesteps_for

ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)  # Stable Diffusion's


def drawn(shape, count=4000, **about):
    generator = torch.Generator().manual_seed(0)
    return torch.stack([draw_noise(shape, generator, **about) for _ in range(count)])


def config(**values):
    return read(TrainingConfig, values)


def test_without_options_it_is_white_noise_bit_for_bit():
    plain = torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(3))
    assert torch.equal(draw_noise((4, 8, 8), torch.Generator().manual_seed(3)), plain)


def test_offset_noise_has_its_covariance():
    noise = drawn((2, 2, 2), count=20000, offset=0.5).flatten(1)
    found = noise.T @ noise / len(noise)
    channel = torch.full((4, 4), 0.25) + torch.eye(4)
    wanted = torch.block_diag(channel, channel)  # cells of one channel share a draw, channels do not
    assert torch.allclose(found, wanted, atol=0.05)


def test_pyramid_noise_of_two_by_two_cells_shares_one_draw_for_each_channel():
    discount = 0.6
    noise = drawn((512, 2, 2), count=60, pyramid=discount).permute(0, 1, 2, 3).reshape(-1, 4)
    found = noise.T @ noise / len(noise)
    shared = discount**2 / (1 + discount**2)  # of a variance brought back to 1
    wanted = torch.full((4, 4), shared) + (1 - shared) * torch.eye(4)
    assert torch.allclose(found, wanted, atol=0.03)


def test_pyramid_noise_is_coarser_the_more_levels_count_and_as_strong_as_ever():
    def neighbours(pyramid, levels):
        noise = drawn((4, 16, 16), count=200, pyramid=pyramid, levels=levels)
        assert float(noise.std()) == pytest.approx(1, abs=0.02)
        return float((noise[..., 1:] * noise[..., :-1]).mean())

    assert abs(neighbours(0.0, 6)) < 0.02
    assert 0.02 < neighbours(0.4, 6) < neighbours(0.8, 6)
    assert neighbours(0.8, 1) < neighbours(0.8, 6)


def test_zero_terminal_snr_ends_in_noise_alone_and_begins_as_before():
    rescaled = zero_terminal_snr(ALPHAS)
    assert rescaled[-1] == 0 and rescaled[0] == pytest.approx(float(ALPHAS[0]), rel=1e-6)
    assert bool((rescaled[1:] < rescaled[:-1]).all())
    roots, before = rescaled.double().sqrt(), ALPHAS.double().sqrt()
    slope = (roots[0] - roots[500]) / (before[0] - before[500])  # the square roots are shifted and scaled, all alike
    assert torch.allclose(roots, roots[0] - slope * (before[0] - before), atol=1e-6)
    assert torch.allclose(zero_terminal_snr(rescaled), rescaled, atol=1e-6)


def test_a_model_that_predicts_the_noise_gets_no_zero_terminal_snr():
    with pytest.raises(ConfigError, match="zero_terminal_snr"):
        noise_schedule(ALPHAS, config(zero_terminal_snr=True), "epsilon")
    assert noise_schedule(ALPHAS, config(zero_terminal_snr=True), "v_prediction")[-1] == 0
    assert torch.equal(noise_schedule(ALPHAS, config(), "epsilon"), ALPHAS)


def timesteps(shape, steps=2000, count=4):
    return torch.cat([timesteps_for(5, step, count, 1000, shape) for step in range(steps)]).float()


def test_a_range_of_timesteps_is_used_evenly():
    found = timesteps(timestep_shape(config(timestep_from=0.2, timestep_to=0.6)))
    assert 200 <= int(found.min()) < 205 and 595 < int(found.max()) < 600
    assert float(found.mean()) == pytest.approx(399.5, abs=2) and float(found.std()) == pytest.approx(400 / math.sqrt(12), rel=0.02)


@pytest.mark.parametrize("mean, spread", [(0, 1), (0.5, 0.7)])
def test_logit_normal_timesteps_have_their_quantiles(mean, spread):
    shape = timestep_shape(config(timestep_distribution="logit_normal", timestep_mean=mean, timestep_spread=spread))
    found = timesteps(shape) / 1000
    for quantile in (0.1, 0.5, 0.9):
        wanted = 1 / (1 + math.exp(-NormalDist(mean, spread).inv_cdf(quantile)))
        assert float(found.quantile(quantile)) == pytest.approx(wanted, abs=0.01)


def test_all_timesteps_evenly_need_no_shape_and_an_empty_range_is_refused():
    assert timestep_shape(config()) is None
    with pytest.raises(ConfigError, match="timestep_from"):
        timestep_shape(config(timestep_from=0.5, timestep_to=0.5))
