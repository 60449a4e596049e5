import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smdt.evaluation.outcomes import (
    DEPTHS,
    best_wrong,
    evenly,
    known,
    metres_apart,
    on_a_plane,
    recall_curve,
)


@given(st.lists(st.integers(0, 499), min_size=1, max_size=50), st.integers(500, 5000))
def test_a_recall_curve_counts_and_ends_with_everything(ranks, gallery):
    curve = recall_curve(np.array(ranks, dtype=np.float64), gallery)
    assert len(curve) <= DEPTHS
    assert curve[0][0] == 1
    assert curve[-1] == (gallery, 1.0)
    assert [k for k, _ in curve] == sorted({k for k, _ in curve})
    for k, recall in curve:
        assert recall == pytest.approx(sum(rank < k for rank in ranks) / len(ranks))


@given(st.integers(1, 5000), st.integers(2, 1000))
def test_what_is_chosen_is_spread_evenly(count, most):
    chosen = evenly(count, most)
    assert len(chosen) == min(count, most)
    assert chosen[0] == 0
    assert chosen[-1] == count - 1
    steps = np.diff(chosen)
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


def test_metres_between_known_places():
    berlin, paris = [52.5200, 13.4050], [48.8566, 2.3522]
    apart = metres_apart(
        np.array([berlin, berlin, [np.nan, 0.0]]), np.array([paris, berlin, paris])
    )
    assert apart[0] == pytest.approx(877_500, rel=1e-3)
    assert apart[1] == 0
    assert math.isnan(apart[2])


@given(st.floats(-70, 70), st.floats(-170, 170), st.integers(0, 100))
def test_on_a_plane_near_places_are_as_far_apart_as_on_the_globe(lat, lon, seed):
    rng = np.random.default_rng(seed)
    places = np.array([lat, lon]) + rng.uniform(-0.005, 0.005, (5, 2))
    flat = on_a_plane(places)
    for i in range(5):
        expected = metres_apart(places[[i] * 5], places)
        np.testing.assert_allclose(np.linalg.norm(flat - flat[i], axis=1), expected, rtol=2e-3)
    north = np.argsort(places[:, 0])
    assert (np.diff(flat[north, 1]) >= 0).all()


def test_places_that_nobody_knows_stay_unknown():
    nothing = np.full((3, 2), np.nan)
    assert np.isnan(on_a_plane(nothing)).all()
    assert known(on_a_plane(nothing)[:, 0]) == [None, None, None]


def test_the_best_wrong_one_is_the_first_that_is_not_right():
    assert best_wrong([4, 7, 1], [0.9, 0.8, 0.1], {4, 1}) == 0.8
    assert math.isnan(best_wrong([4], [0.9], {4}))
