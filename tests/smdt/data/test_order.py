"""The order of an epoch: coverage, distinct places, and independence of ranks and resumes."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from smdt.data.order import (
    DataState,
    GlobalBatch,
    OrderConfig,
    batches_per_epoch,
    epoch_order,
    evaluation_slice,
    global_batches,
    rank_slice,
    stand_in,
    stream_order,
)

SEEDS = st.integers(0, 2**63 - 1)
EPOCHS = st.integers(0, 1000)
CONFIGS = st.builds(
    OrderConfig,
    policy=st.sampled_from(["shuffle", "sequential"]),
    window=st.none() | st.integers(1, 50),
)
FROZEN_SHUFFLE = [2, 5, 9, 7, 3, 0, 6, 8, 4, 1, 11, 10]
FROZEN_WINDOW = [2, 3, 0, 1, 9, 8, 11, 10, 5, 7, 6, 4]
PLACES = st.lists(st.integers(0, 40), min_size=1, max_size=200).map(np.array)


def possible_batches(places: np.ndarray, global_batch: int) -> int:
    """The most batches with distinct places that any order can have."""
    counts = np.array(list(Counter(places.tolist()).values()))
    fits = [t for t in range(len(places) + 1) if np.minimum(counts, t).sum() >= t * global_batch]
    return max(fits)


@given(CONFIGS, SEEDS, EPOCHS, st.integers(1, 300))
def test_order_is_a_permutation_and_a_function(config, seed, epoch, count):
    order = epoch_order(config, seed, epoch, count)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(count))
    assert np.array_equal(order, epoch_order(config, seed, epoch, count))


def test_order_differs_by_seed_and_epoch():
    config = OrderConfig()
    orders = [epoch_order(config, s, e, 100).tolist() for s in range(3) for e in range(3)]
    assert len({tuple(order) for order in orders}) == 9


def test_order_stays_the_same_across_versions():
    """A checkpoint of an older version goes on with the same samples: frozen values."""
    assert epoch_order(OrderConfig(), 7, 3, 12).tolist() == FROZEN_SHUFFLE
    assert epoch_order(OrderConfig(window=4), 7, 3, 12).tolist() == FROZEN_WINDOW


def test_shuffle_is_uniform():
    """Each sample comes first equally often: 4000 draws of 8, within five deviations."""
    first = [int(epoch_order(OrderConfig(), 1, epoch, 8)[0]) for epoch in range(4000)]
    counts = np.bincount(first, minlength=8)
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500 * 7 / 8)


@given(SEEDS, st.integers(1, 300), st.integers(1, 40))
def test_window_keeps_neighbours_together(seed, count, window):
    order = epoch_order(OrderConfig(window=window), seed, 0, count)
    runs = order // window
    assert (np.diff(runs) != 0).sum() == (count - 1) // window  # each run is met once


@given(CONFIGS, SEEDS, EPOCHS, PLACES, st.integers(1, 16))
def test_batches_hold_distinct_places_and_no_sample_twice(config, seed, epoch, places, size):
    order = epoch_order(config, seed, epoch, len(places))
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
    order = epoch_order(OrderConfig(), seed, 0, count)
    batches = global_batches(order, np.arange(count), size)
    assert batches.ravel().tolist() == order[: count // size * size].tolist()


@given(SEEDS, st.integers(4, 60), st.integers(2, 8))
def test_pairs_of_equal_places_drop_only_the_tail(seed, pairs, size):
    places = np.repeat(np.arange(pairs), 2)
    order = epoch_order(OrderConfig(policy="sequential"), seed, 0, 2 * pairs)
    batches = global_batches(order, places, min(size, pairs // 2))
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
    order = epoch_order(OrderConfig(), 0, 0, len(places))
    batches = global_batches(order, places, 32)
    assert all(len(set(places[batch])) == 32 for batch in batches[::500])
    assert len(batches) == 100_000 // 31


@given(CONFIGS, SEEDS, PLACES, st.integers(1, 3), st.sampled_from([1, 2, 3]), st.data())
def test_stream_resumes_anywhere_on_any_rank_count(config, seed, places, share, world, data):
    start = DataState("hash", seed, 0, 0)
    whole = list(stream_order(config, start, 3, places, 6 * share))
    assert len(whole) == 3 * batches_per_epoch(places, 6 * share)
    for batch in whole:
        slices = [rank_slice(batch.sample_ids, rank, world) for rank in range(world)]
        assert {len(part) for part in slices} == {6 * share // world}
        assert np.concatenate(slices).tolist() == batch.sample_ids.tolist()
    if whole:
        after = data.draw(st.integers(0, len(whole) - 1))
        rest = list(stream_order(config, whole[after].state, 3, places, 6 * share))
        assert as_values(rest) == as_values(whole[after + 1 :])


def as_values(batches: list[GlobalBatch]) -> list[tuple[object, ...]]:
    return [(b.sample_ids.tolist(), b.epoch, b.index, b.state) for b in batches]


def test_rank_slice_refuses_a_batch_that_does_not_divide():
    with pytest.raises(ValueError, match="10 does not divide by 3 ranks"):
        rank_slice(np.arange(10), 0, 3)


@given(st.integers(0, 500), st.integers(1, 9))
def test_evaluation_covers_each_sample_once(count, world):
    slices = [evaluation_slice(count, rank, world) for rank in range(world)]
    assert [i for part in slices for i in part] == list(range(count))
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


def first_batch(seed: int, places: np.ndarray, global_batch: int) -> GlobalBatch:
    state = DataState("", seed, 0, 0)
    return next(stream_order(OrderConfig(), state, 1, places, global_batch))


@given(SEEDS, PLACES, st.data())
def test_stand_ins_of_one_batch_never_share_a_place(seed, places, data):
    """Not even when all of it is damaged, and each rank replaces only its own samples."""
    distinct = len(set(places.tolist()))
    size = data.draw(st.integers(1, distinct))
    batch = first_batch(seed, places, size)
    wanted = [(attempt, slot) for attempt in range(3) for slot in range(size)]
    possible = wanted[: distinct - size]
    chosen = [stand_in(batch, slot, attempt, places) for attempt, slot in reversed(possible)]
    assert len(set(places[chosen].tolist()) - set(places[batch.sample_ids].tolist())) == len(chosen)
    for attempt, slot in wanted[distinct - size :]:
        with pytest.raises(ValueError, match="no place left"):
            stand_in(batch, slot, attempt, places)


def test_stand_ins_are_spread_over_the_split():
    places = np.arange(10_000)
    batch = first_batch(0, places, 8)
    chosen = [stand_in(batch, slot, attempt, places) for slot in range(8) for attempt in range(50)]
    assert np.bincount(np.array(chosen) // 1000, minlength=10).min() > 15


def test_state_survives_json():
    state = DataState("ab12", seed=7, epoch=3, consumed=640, table_hash="")
    assert DataState.from_json(state.to_json()) == state


def test_config_refuses_what_it_does_not_know():
    with pytest.raises(ValidationError):
        OrderConfig(policy="random")
    with pytest.raises(ValidationError):
        OrderConfig(window=0)
