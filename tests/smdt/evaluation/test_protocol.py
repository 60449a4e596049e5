"""Protocols against plain loops in float64: what is right, what does not count, and the recall."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smdt.evaluation.protocol import (
    PROTOCOLS,
    Relevance,
    match_by_id,
    named_tiles,
    protocol_of,
    same_cities,
    tiles_within,
)
from smdt.evaluation.recall import EvaluationError, true_ranks


@given(st.integers(0, 999), st.integers(1, 30), st.integers(0, 20), st.floats(0.5, 30))
def test_tiles_within_a_distance_are_those_of_a_plain_loop(seed, queries, others, metres):
    rng = np.random.default_rng(seed)
    # eastings and northings of Canberra: float32 would round them to half a metre
    gallery = np.array([690_000.0, 6_090_000.0]) + rng.uniform(0, 60, (queries + others, 2))
    truth = tiles_within(gallery[:queries], gallery, metres)
    assert truth.ignored.shape == (queries, 0)
    for query, right in zip(gallery[:queries], truth.right, strict=True):
        distances = [np.hypot(*(query - tile)) for tile in gallery]
        assert set(right) == {i for i, distance in enumerate(distances) if distance <= metres}


def test_five_metres_are_within_five_metres_and_float32_would_not_know():
    own, there = np.array([690_000.0, 6_090_000.0]), np.array([690_003.0, 6_090_004.0])
    gallery = np.stack([own, there, there + np.array([0.01, 0.0])])
    assert set(tiles_within(own[None], gallery, 5.0).right[0]) == {0, 1}


def test_unknown_positions_have_no_distance_rule():
    nowhere = np.array([[0.0, 0.0], [np.nan, 1.0]])
    with pytest.raises(EvaluationError, match=r"1 of 2 samples have no UTM.*--protocol pairs"):
        tiles_within(nowhere, nowhere, 5.0)


@given(st.integers(0, 999), st.integers(1, 20), st.integers(1, 40))
def test_named_tiles_are_found_by_their_number_whatever_the_order(seed, queries, tiles):
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(2 * tiles)[:tiles]
    positive = rng.choice(numbers, queries)
    semi_positives = rng.integers(-1, 2 * tiles, (queries, 3))
    truth = named_tiles(positive, semi_positives, numbers)
    assert numbers[truth.right[:, 0]].tolist() == positive.tolist()
    for own, named, ignored in zip(positive, semi_positives, truth.ignored, strict=True):
        in_gallery = {int(n) for n in named if n in numbers}
        assert {int(numbers[i]) for i in ignored} - {int(own)} == in_gallery - {int(own)}


def test_own_tiles_are_found_among_those_that_could_be_read():
    truth = match_by_id(np.array([9, 3]), np.array([1, 3, 8, 9]))
    assert truth.right.tolist() == [[3], [1]]


def test_cross_area_searches_the_cities_of_the_queries_alone():
    gallery = ["Chicago/a", "Seattle/b", "ChicagoHeights/c", "Chicago/d", "NewYork/e"]
    chosen = same_cities(["Chicago/x", "NewYork/y", "Chicago/z"], gallery)
    assert chosen.tolist() == [True, False, False, True, True]


def plain_rank(scores: np.ndarray, right: set[int], ignored: set[int]) -> float:
    """Rank of the nearest right item: wrong ones that are nearer, ties by half."""
    true = max(scores[i] for i in right)
    wrong = [scores[i] for i in range(len(scores)) if i not in right | ignored]
    return sum(s > true for s in wrong) + sum(s == true for s in wrong) / 2


def test_vigor_counts_semi_positives_as_wrong_for_recall_and_not_for_the_hit_rate():
    """Scores by hand: a semi-positive tile is nearer than the true one in the first query."""
    gallery = torch.eye(6, dtype=torch.float64)
    query = torch.tensor(
        [[0.5, 0.9, 0.1, 0.1, 0.1, 0.1], [0.2, 0.9, 0.5, 0.5, 0.1, 0.1]], dtype=torch.float64
    )
    truth = named_tiles(np.array([0, 2]), np.array([[1, 4, -1], [3, -1, -1]]), np.arange(6))
    right, ignored = torch.from_numpy(truth.right), torch.from_numpy(truth.ignored)
    assert true_ranks(query, gallery, right).tolist() == [1.0, 1.5]
    assert true_ranks(query, gallery, right, ignored).tolist() == [0.0, 1.0]
    for row, (own, semi) in enumerate([(0, {1, 4}), (2, {3})]):
        scores = query[row].numpy()
        assert true_ranks(query, gallery, right)[row] == plain_rank(scores, {own}, set())
        assert true_ranks(query, gallery, right, ignored)[row] == plain_rank(scores, {own}, semi)


def test_cvact_test_takes_the_nearest_of_the_right_ones_and_counts_none_of_them_as_wrong():
    positions = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0], [50.0, 0.0], [60.0, 0.0]])
    truth = tiles_within(positions[:1], positions, 5.0)
    gallery = torch.eye(5, dtype=torch.float64)
    scores = torch.tensor([[0.1, 0.5, 0.7, 0.9, 0.6]], dtype=torch.float64)
    # nearest right is tile 2 with 0.7; only tile 3 is nearer
    assert true_ranks(scores, gallery, torch.from_numpy(truth.right)).tolist() == [1.0]


@pytest.mark.parametrize(
    ("data_set", "area", "split", "name"),
    [
        ("cvusa", None, None, "cvusa"),
        ("cvact", None, None, "cvact_val"),
        ("cvact", None, "val", "cvact_val"),
        ("cvact", None, "test", "cvact_test"),
        ("vigor", "same", None, "vigor_same"),
        ("vigor", "cross", "test", "vigor_cross"),
        ("vigor", "cross", "train", "pairs"),
        ("world", None, None, "pairs"),
        ("folder", None, "test", "pairs"),
    ],
)
def test_a_data_set_has_its_own_protocol(data_set, area, split, name):
    assert protocol_of(data_set, area, split).name == name
    assert PROTOCOLS[name].name == name


@given(st.integers(0, 999), st.integers(1, 15), st.integers(1, 20), st.integers(1, 6))
def test_copies_of_what_is_right_are_right_and_of_what_does_not_count_do_not_count(
    seed, queries, gallery, distinct
):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, distinct, gallery)
    right = rng.integers(0, gallery, (queries, 2))
    ignored = rng.integers(0, gallery, (queries, int(rng.integers(0, 3))))
    found = Relevance(right, ignored).with_copies(images)
    for before, after in ((right, found.right), (ignored, found.ignored)):
        for row, expected in zip(after, before, strict=True):
            assert set(row) == set(np.flatnonzero(np.isin(images, images[expected])))


@given(st.integers(0, 999), st.integers(1, 20), st.integers(1, 6))
def test_every_item_with_the_number_of_a_query_is_right(seed, gallery, distinct):
    numbers = np.random.default_rng(seed).integers(0, distinct, gallery)
    for query, right in zip(numbers, match_by_id(numbers, numbers).right, strict=True):
        assert set(right) == set(np.flatnonzero(numbers == query))
