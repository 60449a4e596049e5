from hypothesis import given
from hypothesis import strategies as st

from launcher.run.restarts import LONGEST_WAIT_SECONDS, Restarts

START = Restarts(limit=3, first_wait_seconds=10.0, step=0)


def after(steps):
    restarts = START
    for step in steps:
        restarts = restarts.after_attempt(step)
    return restarts


def test_the_run_may_start_again_as_often_as_allowed():
    assert not after([0, 0, 0]).exhausted
    assert after([0, 0, 0, 0]).exhausted


def test_a_new_checkpoint_forgives_all_before():
    assert not after([0, 0, 0, 5, 5, 5, 5]).exhausted
    assert after([0, 0, 0, 5, 5, 5, 5, 5]).exhausted


def test_waits_double_while_nothing_comes_of_it():
    waits = [after([0] * n).wait_seconds for n in range(1, 4)]
    assert waits == [10.0, 20.0, 40.0]
    assert after([0, 0, 5]).wait_seconds == 10.0


@given(st.lists(st.integers(0, 9)))
def test_no_wait_is_longer_than_the_longest(steps):
    assert 0 < after(steps).wait_seconds <= LONGEST_WAIT_SECONDS
