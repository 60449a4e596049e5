import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from smdt.evaluation.recall import (
    EvaluationError,
    Piece,
    chance,
    nearest,
    nearest_at_other_places,
    recalls,
    true_ranks,
)


def unit(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=1)


def ranks_oracle(query, gallery, right, ignored) -> np.ndarray:
    """One query at a time in float64; equal gallery rows are made equal scores by hand.

    Examples in which two places that differ are as near as fp32 can't tell are passed over.
    """
    ranks = []
    unique, place = np.unique(gallery.numpy(), axis=0, return_inverse=True)
    place = place.ravel()
    for row, good, neither in zip(query.double().numpy(), right, ignored, strict=True):
        scores = (unique.astype(np.float64) @ row)[place]
        true = max(scores[item] for item in good)
        wrong = [scores[item] for item in set(range(len(gallery))) - {*good, *neither}]
        assume(not any(0 < abs(score - true) < 2e-6 for score in wrong))
        better = sum(score > true for score in wrong)
        ranks.append(better + sum(score == true for score in wrong) / 2)
    return np.array(ranks)


@given(
    queries=st.integers(1, 40),
    gallery=st.integers(1, 60),
    dim=st.integers(2, 32),
    copies=st.integers(0, 30),
    right=st.integers(1, 4),
    ignored=st.integers(0, 4),
    block=st.integers(1, 50),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_float64_oracle_with_duplicates_for_any_block(
    queries, gallery, dim, copies, right, ignored, block, seed
):
    rng = np.random.default_rng(seed)
    items = unit(gallery, dim, seed)
    items = torch.cat([items, items[torch.from_numpy(rng.integers(0, gallery, copies))]])
    query = unit(queries, dim, seed + 1)
    good = rng.integers(0, len(items), (queries, right))
    neither = rng.integers(0, len(items), (queries, ignored))
    given = torch.from_numpy(neither) if ignored else None
    ranks = true_ranks(query, items, torch.from_numpy(good), given, block)
    np.testing.assert_array_equal(ranks.numpy(), ranks_oracle(query, items, good, neither))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [2, 5, 63, 1003])
@pytest.mark.parametrize("dim", [3, 96, 768])
def test_collapsed_descriptors_never_score(count, dim, dtype, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        collapsed = unit(1, dim).to(dtype).expand(count, dim).contiguous()
        for block in (1, 7, 256)[count > 500 :]:
            ranks = true_ranks(collapsed, collapsed, torch.arange(count).unsqueeze(1), block=block)
            assert (ranks == (count - 1) / 2).all()
    finally:
        torch.set_num_threads(before)


def test_ranks_of_part_of_the_queries_are_the_whole_ones():
    query, gallery = unit(101, 16), unit(101, 16, seed=1)
    own = torch.arange(101).unsqueeze(1)
    whole = true_ranks(query, gallery, own)
    parts = [true_ranks(query[r::3], gallery, own[r::3]) for r in range(3)]
    for rank, part in enumerate(parts):
        assert torch.equal(part, whole[rank::3])
    assert true_ranks(query[:0], gallery, own[:0]).shape == (0,)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["query", "gallery"])
def test_zero_and_not_finite_descriptors_are_an_error(side, value):
    views = {"query": unit(5, 4), "gallery": unit(5, 4)}
    views[side][3] = value
    with pytest.raises(EvaluationError, match=f"1 of 5 {side} .* number 3"):
        true_ranks(views["query"], views["gallery"], torch.arange(5).unsqueeze(1))
    with pytest.raises(EvaluationError, match=side):
        nearest(views["query"], views["gallery"], 2)


@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 20), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_nearest_is_the_sorted_gallery(queries, gallery, block, seed):
    query, items = unit(queries, 8, seed), unit(gallery, 8, seed + 1)
    k = max(gallery // 2, 1)
    scores, indices = nearest(query, items, k, block)
    full = query.double() @ items.double().T
    expected = np.argsort(-full.numpy(), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(indices.numpy(), expected)
    torch.testing.assert_close(scores, full.gather(1, indices).float())


def test_recalls_count_a_hit_when_at_most_k_minus_1_are_nearer():
    ranks = np.array([0, 0.5, 1, 4, 4.5, 9, 10, 299])
    assert recalls(ranks, 300) == {"R@1": 1 / 8, "R@5": 4 / 8, "R@10": 6 / 8, "R@1%": 3 / 8}
    assert recalls(ranks, 99)["R@1%"] == recalls(ranks, 199)["R@1%"] == 1 / 8


def test_a_random_order_scores_chance():
    ranks = np.arange(500, dtype=float)  # every place once
    assert recalls(ranks, 500) == pytest.approx(chance(500))
    assert chance(3) == {"R@1": 1 / 3, "R@5": 1.0, "R@10": 1.0, "R@1%": 1 / 3}


def test_no_query_is_an_error():
    with pytest.raises(EvaluationError, match="nothing to evaluate"):
        recalls(np.empty(0), 10)


@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 12), st.integers(0, 1000))
def test_nearest_elsewhere_skips_the_own_place(queries, gallery, k, seed):
    rng = np.random.default_rng(seed)
    query, items = unit(queries, 8, seed), unit(gallery, 8, seed + 1)
    shown, place = rng.integers(-1, 6, (queries, 3)), rng.integers(0, 6, gallery)
    whole = Piece(items, torch.from_numpy(place), torch.arange(gallery))
    found = nearest_at_other_places(query, torch.from_numpy(shown), [whole], k, block=7)
    scores = query.double().numpy() @ items.double().numpy().T
    for row in range(queries):
        others = np.flatnonzero(~np.isin(place, shown[row]))
        expected = others[np.argsort(-scores[row, others])][:k].tolist()
        assert found[row].tolist() == expected + [-1] * (k - len(expected))


def test_nearest_elsewhere_refuses_nan():
    bad = torch.full((2, 4), float("nan"))
    items = Piece(unit(3, 4), torch.arange(3), torch.arange(3))
    with pytest.raises(EvaluationError, match="zero or not finite"):
        nearest_at_other_places(bad, torch.zeros(2, 1, dtype=torch.int64), [items], 2)


@given(
    st.integers(1, 12),
    st.lists(st.integers(0, 9), min_size=1, max_size=5),
    st.integers(1, 14),
    st.integers(1, 4),
    st.integers(0, 1000),
)
def test_a_gallery_in_pieces_gives_the_same_table_also_where_scores_are_equal(
    queries, lengths, k, levels, seed
):
    """Descriptors of small whole numbers: their scores are exact, and many are equal."""
    rng = np.random.default_rng(seed)
    count = sum(lengths)
    query = rng.integers(1, levels + 1, (queries, 2)).astype(np.float32)
    items = rng.integers(1, levels + 1, (count, 2)).astype(np.float32)
    shown, place = rng.integers(-1, 4, (queries, 2)), rng.integers(0, 4, count)
    ids = np.sort(rng.permutation(3 * count)[:count])
    split = [torch.from_numpy(each).split(lengths) for each in (items, place, ids)]
    found = nearest_at_other_places(
        torch.from_numpy(query),
        torch.from_numpy(shown),
        (Piece(*parts) for parts in zip(*split, strict=True)),
        k,
        block=5,
    )
    for row in range(queries):
        others = np.flatnonzero(~np.isin(place, shown[row]))
        best = others[np.argsort(-(items[others] @ query[row]), kind="stable")][:k]
        assert found[row].tolist() == [*ids[best], *[-1] * (k - len(best))]
