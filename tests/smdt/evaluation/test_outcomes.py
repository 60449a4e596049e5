import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smdt.evaluation.outcomes import (
    DEPTHS,
    best_negative_score,
    evenly,
    known,
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


def test_the_best_wrong_one_is_the_first_that_is_not_right():
    assert best_negative_score([4, 7, 1], [0.9, 0.8, 0.1], {4, 1}) == 0.8
    assert math.isnan(best_negative_score([4], [0.9], {4}))


def test_unknown_values_are_none_in_json():
    assert known(np.array([1.00004, np.nan])) == [1.0, None]
