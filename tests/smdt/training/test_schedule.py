import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smdt.training.schedule import Plan, ScheduleConfig, Span, learning_rate_factor, parse_span


@given(st.integers(1, 10**6), st.sampled_from(["step", "epoch"]))
def test_a_span_is_read_as_it_is_written(count, unit):
    assert parse_span(str(Span(count, unit))) == Span(count, unit)


@pytest.mark.parametrize("text", ["", "12", "steps", "-3 steps", "1.5 epochs", "3 hours"])
def test_what_is_no_span_is_refused(text):
    with pytest.raises(ValueError, match="500 steps"):
        parse_span(text)


def test_a_span_ends_with_a_whole_number_of_steps_or_epochs():
    assert [step for step in range(10) if Span(4, "step").ends_at(step, None)] == [4, 8]
    assert [n for n in range(7) if Span(3, "epoch").ends_at(100, n)] == [3, 6]
    assert not Span(3, "epoch").ends_at(3, None)
    assert not Span(0, "step").ends_at(4, 1)


STEPS_PER_EPOCH = st.integers(1, 30)


@given(STEPS_PER_EPOCH, st.integers(1, 9), st.data())
def test_with_one_batch_the_plan_is_that_of_a_run_that_never_stopped(every, epochs, data):
    total = epochs * every
    step = data.draw(st.integers(0, total - 1))
    epoch, done = divmod(step, every)
    places = [(epoch, every - done)]
    if step and not done:  # the end of an epoch may also be said as such
        places.append((epoch - 1, 0))
    for place in places:
        assert Plan.of(Span(epochs, "epoch"), step, *place, every) == Plan(total, epochs)
        assert Plan.of(Span(total, "step"), step, *place, every) == Plan(total, epochs)


@given(STEPS_PER_EPOCH, STEPS_PER_EPOCH, st.integers(1, 9), st.data())
def test_with_another_batch_the_rate_is_where_its_epochs_are(before, now, epochs, data):
    """After e whole epochs the schedule is at e of them, in whatever steps they were made."""
    done = data.draw(st.integers(0, epochs))
    config = ScheduleConfig(warmup_steps=0)
    plan = Plan.of(Span(epochs, "epoch"), done * before, done, now, now)
    assert plan.total == done * before + (epochs - done) * now
    rate = plan.rate_factor(done * before, config)
    assert math.isclose(rate, 0.5 * (1 + math.cos(math.pi * done / epochs)), abs_tol=1e-12)


@given(
    warmup=st.integers(0, 50),
    length=st.integers(1, 200),
    decay=st.sampled_from(["cosine", "linear"]),
)
def test_the_rate_rises_then_falls_and_stays_in_bounds(warmup, length, decay):
    config = ScheduleConfig(warmup_steps=warmup, decay=decay)
    total = warmup + length
    factors = [learning_rate_factor(step, total, config) for step in range(total)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    assert max(factors) == 1.0 or (decay == "linear" and warmup > length)


def test_the_cosine_is_at_its_half_in_the_middle():
    config = ScheduleConfig(warmup_steps=10)
    assert math.isclose(learning_rate_factor(60, 110, config), 0.5)


def test_constant_stays_constant_after_the_warmup():
    config = ScheduleConfig(warmup_steps=2, decay="constant")
    assert [learning_rate_factor(step, 6, config) for step in range(6)] == [0.5, 1, 1, 1, 1, 1]


def test_linear_decay_begins_where_it_is_told_and_never_reaches_zero_in_the_run():
    config = ScheduleConfig(warmup_steps=0, decay="linear", linear_from=0.5)
    factors = [learning_rate_factor(step, 8, config) for step in range(8)]
    assert factors == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    whole = ScheduleConfig(warmup_steps=0, decay="linear", linear_from=0.0)
    assert [learning_rate_factor(step, 4, whole) for step in range(4)] == [1, 0.75, 0.5, 0.25]
