"""Global batches: every sample at most once, no place twice, as many batches as there can be."""

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smdt.data import distinct_places
from smdt.data.distinct_places import batches_per_epoch, global_batches

SEEDS = st.integers(0, 2**63 - 1)
PLACES = st.lists(st.integers(0, 40), min_size=1, max_size=200).map(np.array)


def shuffled(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)


def possible_batches(places: np.ndarray, global_batch: int) -> int:
    """The most batches with distinct places that any order can have."""
    counts = np.array(list(Counter(places.tolist()).values()))
    fits = [t for t in range(len(places) + 1) if np.minimum(counts, t).sum() >= t * global_batch]
    return max(fits)


@given(SEEDS, PLACES, st.integers(1, 16))
def test_batches_hold_distinct_places_and_no_sample_twice(seed, places, size):
    order = shuffled(seed, len(places))
    batches = global_batches(order, places, size)
    assert batches.shape == (len(batches), size)
    assert batches.dtype == np.int64
    used = Counter(batches.ravel().tolist())
    assert set(used.values()) <= {1}
    for batch in batches:
        assert len(set(places[batch].tolist())) == size
    assert len(batches) == possible_batches(places, size) == batches_per_epoch(places, size)


@given(SEEDS, st.integers(1, 60), st.integers(1, 8))
def test_distinct_places_leave_the_order_alone(seed, count, size):
    order = shuffled(seed, count)
    batches = global_batches(order, np.arange(count), size)
    assert batches.ravel().tolist() == order[: count // size * size].tolist()


@given(st.integers(4, 60), st.integers(2, 8))
def test_pairs_of_equal_places_drop_only_the_tail(pairs, size):
    places = np.repeat(np.arange(pairs), 2)
    batches = global_batches(np.arange(2 * pairs), places, min(size, pairs // 2))
    assert len(batches) == 2 * pairs // min(size, pairs // 2)


def test_a_clash_is_postponed_and_the_rest_stays():
    places = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7])
    batches = global_batches(np.arange(9), places, 3)
    assert batches.tolist() == [[0, 2, 3], [1, 4, 5], [6, 7, 8]]


def test_a_clash_in_the_last_batch_is_exchanged_with_an_earlier_one():
    places = np.array([0, 1, 2, 3, 3, 4])
    batches = global_batches(np.arange(6), places, 3)
    assert len(batches) == 2
    assert sorted(batches.ravel().tolist()) == list(range(6))
    assert all(len(set(places[batch])) == 3 for batch in batches)


def test_one_place_for_all_makes_no_batch():
    assert global_batches(np.arange(50), np.zeros(50, dtype=np.int64), 2).shape == (0, 2)


def test_a_crowded_place_costs_linear_time():
    """Half of 200,000 samples at one place: seconds would mean that the repair is quadratic."""
    places = np.where(np.arange(200_000) % 2, 0, np.arange(200_000))
    batches = global_batches(shuffled(0, len(places)), places, 32)
    assert all(len(set(places[batch])) == 32 for batch in batches[::500])
    assert len(batches) == 100_000 // 31


class PlainExchange:
    """The same exchange by looking at every sample of every batch, as it was defined first."""

    def __init__(self, batches: np.ndarray, batch: np.ndarray, places: np.ndarray) -> None:
        self.batches, self.places, self.batch = batches, places, batch.tolist()

    def place(self, sample: int) -> None:
        places = self.places
        without_place = ~(places[self.batches] == places[sample]).any(axis=1)
        for row in np.flatnonzero(without_place)[::-1]:
            fitting = np.flatnonzero(~np.isin(places[self.batches[row]], places[self.batch]))
            if len(fitting):
                self.batch.append(int(self.batches[row, fitting[0]]))
                self.batches[row, fitting[0]] = sample
                return


@given(SEEDS, PLACES, st.integers(1, 16))
def test_the_exchange_is_the_one_that_looks_at_every_sample(seed, places, size):
    """An older run goes on with the same batches."""
    order = shuffled(seed, len(places))
    found = global_batches(order, places, size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distinct_places, "_Exchange", PlainExchange)
        assert np.array_equal(found, global_batches(order, places, size))


def test_the_exchange_costs_one_pass_over_the_samples():
    """200,000 samples, two a place, 4,096 a batch: scanning all of them for each takes a minute."""
    places = np.arange(200_000) // 2
    begin = time.process_time()
    batches = global_batches(shuffled(0, len(places)), places, 4096)
    assert len(batches) == 48
    assert time.process_time() - begin < 5
