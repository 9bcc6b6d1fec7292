"""Learning rates over training steps and strengths over sampling steps."""
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypernetworks.errors import ConfigError
from hypernetworks.schedule import LearningRate, parse_stages, stage_at, strength_at


def test_a1111_syntax_is_a_staircase():
    rate = LearningRate.parse("0.005:100, 1e-3:1000, 1e-5", curve="cosine")
    assert [rate.at(step, 5000) for step in (1, 100, 101, 1000, 1001, 5000)] == [5e-3, 5e-3, 1e-3, 1e-3, 1e-5, 1e-5]


def test_step_minus_one_holds_to_the_end():
    assert LearningRate.parse("1e-3:-1").at(10**6, 10**6) == 1e-3


def test_a_stage_that_ends_early_goes_on():
    assert LearningRate.parse("1e-3:10, 1e-4:20").at(500, 1000) == 1e-4


def test_cosine_is_half_way_in_the_middle_and_ends_at_its_floor():
    rate = LearningRate.parse("2.0", "cosine")
    assert rate.at(1, 1001) == pytest.approx(2.0)
    assert rate.at(501, 1001) == pytest.approx(2.0 * (0.01 + 0.99 * 0.5))
    assert rate.at(1001, 1001) == pytest.approx(0.02)


def test_linear_falls_evenly():
    rate = LearningRate.parse("1.0", "linear")
    falls = [rate.at(step, 100) - rate.at(step + 1, 100) for step in range(1, 100)]
    assert max(falls) - min(falls) < 1e-12


def test_restarts_fall_to_the_floor_and_begin_again_lower():
    rate = LearningRate.parse("2.0", "restarts", cycles=3, decay=0.5, floor=0.0)
    found = [rate.at(step, 301) for step in range(1, 302)]
    assert [found[start] for start in (0, 100, 200)] == pytest.approx([2.0, 1.0, 0.5])
    assert [found[middle] for middle in (50, 150, 250)] == pytest.approx([1.0, 0.5, 0.25])
    assert found[99] < 0.01 and found[199] < 0.01 and found[300] == pytest.approx(0, abs=1e-12)


def test_growing_cycles_share_the_steps_in_their_proportion():
    rate = LearningRate.parse("1.0", "restarts", cycles=3, growth=2.0, floor=0.1)
    found = [rate.at(step, 701) for step in range(1, 702)]
    begun = [step for step in range(1, 701) if found[step] > found[step - 1]]
    assert begun == [100, 300] and all(found[step] == pytest.approx(1.0) for step in begun)
    assert min(found) >= 0.1 and found[700] == pytest.approx(0.1)


@pytest.mark.parametrize("power", [0.5, 1, 2])
def test_a_polynomial_is_the_power_of_what_is_left(power):
    rate = LearningRate.parse("1.0", "polynomial", power=power, floor=0.2)
    assert rate.at(31, 101) == pytest.approx(0.2 + 0.8 * 0.7**power)


def test_rex_is_its_formula():
    rate = LearningRate.parse("1.0", "rex", floor=0.0)
    assert rate.at(61, 101) == pytest.approx((1 - 0.6) / (0.5 + 0.5 * (1 - 0.6)))
    assert rate.at(1, 101) == 1 and rate.at(101, 101) == 0


@pytest.mark.parametrize("curve", ["linear", "cosine", "restarts", "polynomial", "rex"])
@given(st.integers(1, 50), st.integers(1, 60), st.integers(0, 10), st.integers(1, 9), st.floats(0.1, 10))
def test_no_schedule_leaves_the_range_between_floor_and_rate(curve, step, steps, warmup, cycles, growth):
    rate = LearningRate.parse("3.0", curve, warmup, floor=0.1, cycles=cycles, growth=growth)
    assert (0 if step <= warmup else 0.3 - 1e-9) <= rate.at(step, steps) <= 3.0


def test_stages_of_anything_are_read_alike():
    stages = parse_stages("10:100, 1", "Clipping")
    assert [stage_at(stages, step) for step in (1, 100, 101, 5000)] == [10, 10, 1, 1]
    with pytest.raises(ConfigError, match="^Clipping: 'x'"):
        parse_stages("x", "Clipping")


def test_warm_up_rises_evenly_and_then_the_rate_is_whole():
    rate = LearningRate.parse("1.0", "constant", warmup_steps=4)
    assert [rate.at(step, 100) for step in (1, 2, 3, 4, 5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("text", ["", "fast", "1e-3:", "1e-3:x", "1e-3:0", "1e-3:-2", "nan", "inf", "-1e-3", "1e-3:100, 1e-4:50", ":", "1e-3::5"])
def test_what_cannot_be_read_is_named(text):
    if text == "1e-3:":
        assert LearningRate.parse(text).at(1, 1) == 1e-3  # as A1111: an empty step is no step
    else:
        with pytest.raises(ConfigError, match="Learning rate"):
            LearningRate.parse(text)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text):
    try:
        rate = LearningRate.parse(text)
    except ConfigError:
        return
    assert math.isfinite(rate.at(1, 10)) and rate.at(1, 10) >= 0


@given(st.lists(st.tuples(st.floats(1e-8, 1), st.integers(1, 500)), min_size=1, max_size=5), st.integers(1, 600))
def test_the_rate_is_that_of_the_first_stage_that_reaches_the_step(stages, step):
    ends = sorted({until for _, until in stages})
    stages = [(rate, until) for (rate, _), until in zip(stages, ends, strict=False)]
    found = LearningRate.parse(", ".join(f"{rate!r}:{until}" for rate, until in stages)).at(step, 600)
    assert found == next((rate for rate, until in stages if until >= step), stages[-1][0])


def test_multiples_of_the_automatic_rate():
    assert LearningRate.parse("auto").at(1, 9) == LearningRate.parse(" AUTO ").at(1, 9) == 1.0
    assert LearningRate.parse("auto*0.5").at(1, 9) == LearningRate.parse("auto * 5e-1").at(1, 9) == 0.5
    assert [LearningRate.parse("auto*2:3, 0.1").at(step, 9) for step in (3, 4)] == [2.0, 0.1]
    with pytest.raises(ConfigError, match="matic"):
        LearningRate.parse("automatic")


def test_strength_acts_within_its_share_of_the_steps():
    assert [strength_at(0.25, 0.75, step, 8) for step in range(8)] == [0, 0, 1, 1, 1, 1, 0, 0]
    assert all(strength_at(0.0, 1.0, step, 8) == 1 for step in range(8))
    assert all(strength_at(0.5, 0.5, step, 8) == 0 for step in range(8))


@pytest.mark.parametrize("start", [0.95, 1.0])
def test_from_1_is_the_last_step(start):
    assert [strength_at(start, 1.0, step, 4) for step in range(4)] == [0, 0, 0, 1] and strength_at(start, 1.0, 0, 1) == 1
