"""The order of an epoch: coverage, neighbours, and independence of ranks and resumes."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from smdt.data import replacement
from smdt.data.distinct_places import batches_per_epoch
from smdt.data.order import (
    DataState,
    GlobalBatch,
    HardConfig,
    OrderConfig,
    batches_left,
    epoch_order,
    evaluation_slice,
    rank_slice,
    stream_order,
)
from smdt.data.replacement import replacement_sample

SEEDS = st.integers(0, 2**63 - 1)
EPOCHS = st.integers(0, 1000)
CONFIGS = st.one_of(
    st.builds(OrderConfig, window=st.none() | st.integers(1, 50)),
    st.just(OrderConfig(policy="sequential")),
    st.integers(2, 20).map(lambda group: OrderConfig(policy="hard", hard=HardConfig(group=group))),
)
TABLE_SEEDS = st.none() | st.integers(0, 100)
FROZEN_HARD = [2, 11, 1, 5, 9, 4, 6, 7, 10, 8, 3, 0]
FROZEN_SHUFFLE = [2, 5, 9, 7, 3, 0, 6, 8, 4, 1, 11, 10]
FROZEN_WINDOW = [2, 3, 0, 1, 9, 8, 11, 10, 5, 7, 6, 4]
FEW_PLACES = st.lists(st.integers(0, 12), min_size=1, max_size=25).map(np.array)
PLACES = st.lists(st.integers(0, 40), min_size=1, max_size=200).map(np.array)


def random_table(seed: int | None, places: np.ndarray) -> np.ndarray | None:
    """Up to twelve random samples of other places for each sample, no sample twice."""
    if seed is None:
        return None
    rng = np.random.default_rng(seed)
    table = np.full((len(places), 12), -1, dtype=np.int32)
    for sample, place in enumerate(places):
        others = rng.permutation(np.flatnonzero(places != place))[: rng.integers(0, 13)]
        table[sample, : len(others)] = others
    return table


@given(CONFIGS, SEEDS, EPOCHS, st.integers(1, 300), TABLE_SEEDS)
def test_order_is_a_permutation_and_a_function(config, seed, epoch, count, table_seed):
    table = random_table(table_seed, np.arange(count))
    order = epoch_order(config, seed, epoch, count, table)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(count))
    assert np.array_equal(order, epoch_order(config, seed, epoch, count, table))


def test_order_differs_by_seed_and_epoch():
    config = OrderConfig()
    orders = [epoch_order(config, s, e, 100).tolist() for s in range(3) for e in range(3)]
    assert len({tuple(order) for order in orders}) == 9


def test_order_stays_the_same_across_versions():
    """A checkpoint of an older version goes on with the same samples: frozen values."""
    assert epoch_order(OrderConfig(), 7, 3, 12).tolist() == FROZEN_SHUFFLE
    assert epoch_order(OrderConfig(window=4), 7, 3, 12).tolist() == FROZEN_WINDOW
    hard = OrderConfig(policy="hard", hard=HardConfig(group=4))
    assert epoch_order(hard, 7, 3, 12, random_table(5, np.arange(12))).tolist() == FROZEN_HARD


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


def slow_hard_order(noise: np.ndarray, table: np.ndarray, group: int) -> list[int]:
    """The same in plain lists: who comes first brings neighbours that nobody brought before."""
    order: list[int] = []
    for sample in sorted(range(len(noise)), key=lambda s: noise[s]):
        if sample in order:
            continue
        free = [n for n in table[sample].tolist() if n >= 0 and n not in order]
        if len(free) > group - 1:
            near, others = free[: group // 2], free[group // 2 :]
            free = near + sorted(others, key=lambda s: noise[s])[: group - 1 - len(near)]
        order += [sample, *free]
    return order


@given(SEEDS, EPOCHS, st.integers(1, 80), st.integers(0, 100), st.integers(2, 20))
def test_hard_order_brings_unused_neighbours(seed, epoch, count, table_seed, group):
    table = random_table(table_seed, np.arange(count))
    config = OrderConfig(policy="hard", hard=HardConfig(group=group))
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64))
    expected = slow_hard_order(words.random_raw(count), table, group)
    assert epoch_order(config, seed, epoch, count, table).tolist() == expected


def test_hard_batches_hold_more_neighbours_than_random_ones():
    """Samples on a ring: of 64, a random batch of 16 has few within two steps of each other."""
    ring = np.arange(64)
    table = ((ring[:, None] + np.array([1, -1, 2, -2])) % 64).astype(np.int32)
    config = OrderConfig(policy="hard", hard=HardConfig(neighbours=4, group=4))

    def near_pairs(order: np.ndarray) -> int:
        steps = np.abs(order.reshape(4, 16, 1) - order.reshape(4, 1, 16))
        return int((np.minimum(steps, 64 - steps) <= 2).sum() - 64)

    hard = sum(near_pairs(epoch_order(config, 0, epoch, 64, table)) for epoch in range(20))
    random = sum(near_pairs(epoch_order(OrderConfig(), 0, epoch, 64)) for epoch in range(20))
    assert hard > 2 * random


@given(
    CONFIGS, SEEDS, PLACES, st.integers(1, 3), st.sampled_from([1, 2, 3]), TABLE_SEEDS, st.data()
)
def test_stream_resumes_anywhere_on_any_rank_count(
    config, seed, places, share, world, table_seed, data
):
    start = DataState("hash", seed, 0, 0)
    table = random_table(table_seed, places)
    whole = list(stream_order(config, start, 3, places, 6 * share, table))
    assert len(whole) == 3 * batches_per_epoch(places, 6 * share)
    for batch in whole:
        assert len(set(places[batch.sample_ids].tolist())) == 6 * share
        slices = [rank_slice(batch.sample_ids, rank, world) for rank in range(world)]
        assert {len(part) for part in slices} == {6 * share // world}
        assert np.concatenate(slices).tolist() == batch.sample_ids.tolist()
    if whole:
        after = data.draw(st.integers(0, len(whole) - 1))
        rest = list(stream_order(config, whole[after].state, 3, places, 6 * share, table))
        assert as_values(rest) == as_values(whole[after + 1 :])


@given(CONFIGS, SEEDS, PLACES, st.integers(1, 8), st.integers(1, 8), TABLE_SEEDS, st.data())
def test_with_another_batch_an_epoch_goes_on_with_the_samples_that_have_not_come(
    config, seed, places, before, now, table_seed, data
):
    table = random_table(table_seed, places)
    start = DataState("hash", seed, 0, 0)
    first = list(stream_order(config, start, 1, places, before, table))
    came = data.draw(st.integers(0, len(first)))
    state = first[came - 1].state if came else start
    left = batches_left(state.completed(before, config), places, now, lambda: table)
    rest = list(stream_order(config, replace(state, left=left), 2, places, now, table))
    of_epoch = [batch for batch in rest if batch.epoch == 0]
    assert len(of_epoch) == left
    assert len(rest) == left + batches_per_epoch(places, now)
    seen = np.concatenate([np.empty(0), *(b.sample_ids for b in [*first[:came], *of_epoch])])
    assert len(set(seen.tolist())) == len(seen)
    if came == len(first) > 0:
        assert left == 0  # an epoch that is over is not opened again
    elif len(set(places.tolist())) == len(places):
        assert left == (len(places) - came * before) // now
    assert [b.index for b in of_epoch] == list(range(came, came + left))
    for number, batch in enumerate(of_epoch, start=1):
        assert len(set(places[batch.sample_ids].tolist())) == now
        assert batch.state.consumed == came * before + number * now
    if rest:  # it goes on exactly from anywhere, as any other epoch
        after = data.draw(st.integers(0, len(rest) - 1))
        again = list(stream_order(config, rest[after].state, 2, places, now, table))
        assert as_values(again) == as_values(rest[after + 1 :])


@given(CONFIGS, CONFIGS, SEEDS, st.integers(1, 60), st.integers(1, 8), st.data())
def test_an_epoch_ends_in_the_order_that_it_began_with(before, now, seed, count, size, data):
    places = np.arange(count)
    whole = list(stream_order(before, DataState("hash", seed, 0, 0), 1, places, size))
    if not whole:
        return
    after = data.draw(st.integers(0, len(whole) - 1))
    state = DataState.from_json(json.loads(json.dumps(whole[after].state.to_json())))
    rest = list(stream_order(now, state, 2, places, size))
    own = [batch for batch in rest if batch.epoch == 0]
    assert as_values(own) == as_values(whole[after + 1 :])
    new = stream_order(now, DataState("hash", seed, 1, 0), 2, places, size)
    assert as_values(rest[len(own) :]) == as_values(list(new))


@given(CONFIGS, SEEDS, st.integers(1, 60), st.integers(1, 8), st.data())
def test_what_an_older_version_saved_goes_on_with_the_same_samples(config, seed, count, size, data):
    places = np.arange(count)
    whole = list(stream_order(config, DataState("hash", seed, 0, 0), 2, places, size))
    if not whole:
        return
    after = data.draw(st.integers(0, len(whole) - 1))
    known = whole[after].state
    old = DataState(known.manifest_hash, known.seed, known.epoch, known.consumed)
    rest = list(stream_order(config, old, 2, places, size))
    assert as_values(rest) == as_values(whole[after + 1 :])
    left = batches_left(old.completed(size, config), places, size)
    assert left == known.left


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
    chosen = [
        replacement_sample(batch, slot, attempt, places) for attempt, slot in reversed(possible)
    ]
    assert len(set(places[chosen].tolist()) - set(places[batch.sample_ids].tolist())) == len(chosen)


@settings(max_examples=40)
@given(SEEDS, FEW_PLACES, st.data(), st.sampled_from([1 << 17, 7]))
def test_every_slot_reaches_every_sample_that_is_free(seed, places, data, most_draws):
    """Free are samples of places that the batch lacks and others of the damaged one's place."""
    size = data.draw(st.integers(1, len(set(places.tolist()))))
    batch = first_batch(seed, places, size)
    slot = data.draw(st.integers(0, size - 1))
    held = set(places[batch.sample_ids].tolist()) - {places[batch.sample_ids[slot]]}
    taken = held, set(batch.sample_ids.tolist())
    free = [i for i, place in enumerate(places) if place not in taken[0] and i not in taken[1]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replacement, "MOST_DRAWS", most_draws)
        chosen = [replacement_sample(batch, slot, attempt, places) for attempt in range(len(free))]
        with pytest.raises(ValueError, match="no place left"):
            replacement_sample(batch, slot, len(free), places)
    assert sorted(chosen) == free
    new = set(places.tolist()) - set(places[batch.sample_ids].tolist())
    assert set(places[chosen[: len(new)]].tolist()) == new, "each place before any comes twice"


def test_a_stand_in_where_nearly_all_samples_are_at_one_place_is_found_quickly():
    places = np.where(np.arange(200_000) % 1_999, 0, np.arange(200_000))
    places = np.unique(places, return_inverse=True)[1]
    batch = first_batch(0, places, 90)
    begin = time.process_time()
    chosen = {replacement_sample(batch, slot, 0, places) for slot in (8, 10)}
    assert time.process_time() - begin < 10
    assert not set(places[list(chosen)]) & set(places[batch.sample_ids])


def test_stand_ins_are_spread_over_the_split():
    places = np.arange(10_000)
    batch = first_batch(0, places, 8)
    chosen = [
        replacement_sample(batch, slot, attempt, places)
        for slot in range(8)
        for attempt in range(50)
    ]
    assert np.bincount(np.array(chosen) // 1000, minlength=10).min() > 15


def test_state_survives_json():
    state = DataState("ab12", seed=7, epoch=3, consumed=640, table_hash="")
    assert DataState.from_json(state.to_json()) == state


def test_config_refuses_what_it_does_not_know():
    with pytest.raises(ValidationError):
        OrderConfig(policy="random")
    with pytest.raises(ValidationError):
        OrderConfig(window=0)
    with pytest.raises(ValidationError, match="window belongs to policy shuffle"):
        OrderConfig(policy="hard", window=5)
