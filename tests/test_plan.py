"""Which sample comes at which step: pure functions of seeds and counters, fair to every picture."""
import hashlib
from collections import Counter
from math import gcd
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hypernetworks.dataset import Bucket, Picture
from hypernetworks.plan import Plan, generator_for, random_for, seed_for, split, timesteps_for

SQUARE, WIDE, TALL = Bucket(128, 128), Bucket(192, 96), Bucket(96, 192)
BUCKETS = st.lists(st.sampled_from([SQUARE, WIDE, TALL]), min_size=1, max_size=30)
SEEDS = st.integers(0, 2**63 - 1)


def pictures(count: int) -> list[Picture]:
    return [
        Picture(Path(f"{number}.png"), 8, 8, None, None, hashlib.sha256(b"%d" % number).hexdigest()[:32])
        for number in range(count)
    ]


def shown(plan: Plan, batches: range) -> Counter:
    return Counter(sample.picture for index in batches for sample in plan.batch(index))


# --- the plan -------------------------------------------------------------------------------------------------------------------


def test_sixteen_pictures_in_batches_of_four_make_an_epoch_of_four_batches():
    plan = Plan([SQUARE] * 16, 4, seed=1)
    assert plan.batches_per_epoch == 4
    for epoch in range(5):
        assert shown(plan, range(4 * epoch, 4 * epoch + 4)) == {picture: 1 for picture in range(16)}


def test_epochs_come_in_different_orders():
    plan = Plan([SQUARE] * 16, 4, seed=1)
    orders = {
        tuple(sample.picture for index in range(4 * epoch, 4 * epoch + 4) for sample in plan.batch(index)) for epoch in range(10)
    }
    assert len(orders) == 10


def test_three_pictures_fill_batches_of_four_evenly():
    plan = Plan([SQUARE] * 3, 4, seed=0)
    assert all(len(plan.batch(index)) == 4 for index in range(9))
    assert shown(plan, range(9)) == {0: 12, 1: 12, 2: 12}


@settings(max_examples=60, deadline=None)
@given(BUCKETS, st.integers(1, 9), SEEDS)
def test_every_batch_is_full_and_of_one_bucket(buckets, batch_size, seed):
    plan = Plan(buckets, batch_size, seed)
    for index in range(12):
        batch = plan.batch(index)
        assert len(batch) == batch_size
        assert len({buckets[sample.picture] for sample in batch}) == 1


@settings(max_examples=60, deadline=None)
@given(BUCKETS, st.integers(1, 9), SEEDS, st.integers(1, 4))
def test_after_whole_epochs_every_picture_was_shown_that_often(buckets, batch_size, seed, epochs):
    plan = Plan(buckets, batch_size, seed)
    counts = shown(plan, range(plan.batches_in(epochs)))
    for picture, bucket in enumerate(buckets):
        surplus = -(-epochs * buckets.count(bucket) // batch_size) * batch_size - epochs * buckets.count(bucket)
        assert epochs <= counts[picture] <= epochs + -(-surplus // buckets.count(bucket))
    assert plan.epoch_of(plan.batches_in(epochs)) >= epochs
    assert plan.epoch_of(plan.batches_in(epochs) - 1) < epochs


@settings(max_examples=30, deadline=None)
@given(BUCKETS, st.integers(1, 6), SEEDS)
def test_where_epochs_and_batches_meet_all_pictures_are_even(buckets, batch_size, seed):
    epochs = 1
    for count in Counter(buckets).values():
        need = batch_size // gcd(batch_size, count)
        epochs = epochs * need // gcd(epochs, need)
    plan = Plan(buckets, batch_size, seed)
    assert set(shown(plan, range(plan.batches_in(epochs))).values()) == {epochs}


@settings(max_examples=40, deadline=None)
@given(BUCKETS, st.integers(1, 9), SEEDS, st.integers(0, 10**9))
def test_a_batch_depends_on_nothing_but_seed_and_index(buckets, batch_size, seed, index):
    plan = Plan(buckets, batch_size, seed, flip=True, crops=3)
    for other in (7, 0, 3):
        plan.batch(other)
    assert plan.batch(index) == Plan(buckets, batch_size, seed, flip=True, crops=3).batch(index)


def test_another_seed_is_another_order():
    assert Plan([SQUARE] * 30, 4, seed=1).batch(0) != Plan([SQUARE] * 30, 4, seed=2).batch(0)


def test_batches_of_different_buckets_are_mixed():
    buckets = [SQUARE] * 40 + [WIDE] * 40
    plan = Plan(buckets, 4, seed=3)
    order = [buckets[plan.batch(index)[0].picture] for index in range(20)]
    assert 4 < sum(one != other for one, other in zip(order, order[1:], strict=False))


def test_every_view_of_a_picture_is_shown_before_any_comes_again():
    plan = Plan([SQUARE] * 4, 2, seed=5, flip=True, crops=3)
    for cycle in range(3):
        views = Counter(
            (sample.picture, sample.flip, sample.crop)
            for index in range(12 * cycle, 12 * cycle + 12)
            for sample in plan.batch(index)
        )
        assert views == {(picture, flip, crop): 1 for picture in range(4) for flip in (False, True) for crop in range(3)}


def test_without_flips_and_crops_there_is_one_view():
    assert {(sample.flip, sample.crop) for index in range(20) for sample in Plan([SQUARE] * 5, 2, seed=0).batch(index)} == {
        (False, 0)
    }


def test_sample_numbers_count_through_a_step_that_gathers_gradients():
    plan = Plan([SQUARE] * 8, 4, seed=0, accumulation=3)
    assert [sample.number for index in range(6) for sample in plan.batch(index)] == [*range(12), *range(12)]


def test_a_long_run_costs_no_more_than_a_short_one():
    plan = Plan([SQUARE, WIDE] * 5000, 4, seed=0)
    assert plan.batches_per_epoch == 2500
    assert len(plan.batch(10**12)) == 4


# --- held-out pictures ----------------------------------------------------------------------------------------------------------


def test_too_few_pictures_hold_none_out():
    assert split(pictures(7), 0.5, seed=0) == (pictures(7), [])
    assert split(pictures(50), 0.0, seed=0) == (pictures(50), [])


@given(st.integers(8, 60), st.floats(0.001, 0.5), SEEDS)
def test_about_the_share_asked_for_is_held_out(count, share, seed):
    training, held_out = split(pictures(count), share, seed)
    assert len(held_out) == max(1, round(share * count))
    assert sorted(picture.path for picture in training + held_out) == sorted(picture.path for picture in pictures(count))


@given(st.permutations(pictures(20)), SEEDS)
def test_neither_order_nor_names_decide_who_is_held_out(order, seed):
    renamed = [Picture(Path(f"other {number}.png"), 8, 8, None, None, picture.key) for number, picture in enumerate(order)]
    assert {picture.key for picture in split(renamed, 0.2, seed)[1]} == {
        picture.key for picture in split(pictures(20), 0.2, seed)[1]
    }


def test_a_copy_is_never_on_both_sides():
    twins = pictures(10) + [Picture(Path(f"copy of {picture.path}"), 8, 8, None, None, picture.key) for picture in pictures(10)]
    training, held_out = split(twins, 0.3, seed=4)
    assert held_out and not {picture.key for picture in training} & {picture.key for picture in held_out}


def test_copies_of_one_picture_leave_something_to_train_on():
    assert split(pictures(1) * 10, 0.5, seed=0) == (pictures(1) * 10, [])


def test_another_seed_holds_out_others():
    assert len({tuple(picture.path for picture in split(pictures(40), 0.1, seed)[1]) for seed in range(5)}) == 5


# --- random numbers -------------------------------------------------------------------------------------------------------------


def test_seeds_are_frozen_for_ever():
    """The first 63 bits of SHA-256("7/3/1/noise"), worked out with another tool (sha256sum)."""
    assert seed_for(7, 3, 1, "noise") == int("5298c064fa318aec", 16) >> 1


@given(st.tuples(SEEDS, st.integers(0, 10**6), st.integers(0, 64), st.sampled_from(["noise", "latent", "caption"])))
def test_equal_keys_draw_alike_and_others_do_not(key):
    seed, step, sample, purpose = key
    draw = torch.randn(4, generator=generator_for(*key))
    assert torch.equal(draw, torch.randn(4, generator=generator_for(*key)))
    assert random_for(*key).random() == random_for(*key).random()
    for other in [
        (seed + 1, step, sample, purpose),
        (seed, step + 1, sample, purpose),
        (seed, step, sample + 1, purpose),
        (*key[:3], "crop"),
    ]:
        assert not torch.equal(draw, torch.randn(4, generator=generator_for(*other)))
        assert random_for(*key).random() != random_for(*other).random()


def test_the_global_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    torch.randn(3, generator=generator_for(0, 0, 0, "noise"))
    timesteps_for(0, 0, 4, 1000)
    assert torch.equal(before, torch.random.get_rng_state())


# --- timesteps ------------------------------------------------------------------------------------------------------------------


@given(SEEDS, st.integers(0, 10**6), st.integers(1, 70), st.integers(1, 1000))
def test_a_batch_has_one_timestep_from_each_of_its_slices(seed, step, count, total):
    timesteps = timesteps_for(seed, step, count, total)
    assert timesteps.dtype == torch.int64 and timesteps.shape == (count,)
    for place, timestep in enumerate(sorted(timesteps.tolist())):
        assert int(place * total / count) <= timestep <= (place + 1) * total / count and timestep < total


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_small_batches_are_spread_over_a_window_of_steps(count):
    window = 8 // count
    for first in range(0, 10 * window, window):
        timesteps = sorted(t for step in range(first, first + window) for t in timesteps_for(9, step, count, 1000).tolist())
        slices = [int(timestep * count * window / 1000) for timestep in timesteps]
        assert slices == list(range(count * window))


@pytest.mark.parametrize("count", [1, 4])
def test_each_sample_by_itself_is_uniform(count):
    drawn = torch.stack([timesteps_for(3, step, count, 1000) for step in range(4000)])
    for sample in range(count):
        tenths = torch.bincount(drawn[:, sample] // 100, minlength=10) / 4000
        assert (tenths - 0.1).abs().max() < 0.03


@given(st.integers(1, 8))
def test_timesteps_are_the_same_whatever_was_drawn_before(count):
    expected = timesteps_for(1, 17, count, 1000)
    timesteps_for(1, 16, count, 1000)
    assert torch.equal(timesteps_for(1, 17, count, 1000), expected)
