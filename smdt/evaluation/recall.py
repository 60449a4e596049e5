"""Rank of the first relevant item of each query, exact, in blocks of queries.

Q queries, G gallery items, D descriptor, R right items of a query, M items that do not count. A
block of queries is scored against the whole gallery by one matrix product, out of which the true
score is read too: a score that is computed on its own differs from it in the last digits.

Equal descriptors get scores that differ in the last digits even inside one product (measured: by
column, by block size, by thread count). Scores within the product's rounding error of the true one
are therefore ties. Without this, descriptors that collapsed to one point score at random.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_shards.base.errors import UserError

BLOCK = 256
"""Queries scored at a time: the scores take 4 * BLOCK * G bytes, 91 MiB for CVACT_test."""


class EvaluationError(UserError):
    """Descriptors that can't be ranked."""


def true_ranks(
    query: Tensor,
    gallery: Tensor,
    right: Tensor,
    ignored: Tensor | None = None,
    block: int = BLOCK,
) -> Tensor:
    """Rank the nearest right gallery item of each query by inner product.

    Args:
        query: [Q, D], fp32 or fp64.
        gallery: [G, D], on the same device.
        right: int64 [Q, R], gallery items that are right; a query with fewer repeats one.
        ignored: int64 [Q, M], gallery items that count neither as right nor as wrong, padded the
            same way; None: no such items. An item in both is right.
        block: queries scored at a time.

    Returns:
        float64 [Q]: the number of wrong gallery items that are strictly nearer than the nearest
        right one, plus half of the ties. 0 is best.

    Raises:
        EvaluationError: a descriptor is zero or not finite.
    """
    tolerance_Q = _rounding_error(query, gallery)
    ranks = torch.empty(len(query), dtype=torch.float64, device=query.device)
    for rows, scores_QG in _score_blocks(query, gallery, block):
        true_Q1 = scores_QG.gather(1, right[rows]).amax(dim=1, keepdim=True)
        for uncounted in (right, ignored):
            if uncounted is not None:
                scores_QG.scatter_(1, uncounted[rows], -math.inf)
        tolerance_Q1 = tolerance_Q[rows].unsqueeze(1)
        # a nearer item is two halves, a tie one; torch adds bytes five times as fast as booleans
        halves_QG = (scores_QG > true_Q1 + tolerance_Q1).view(torch.uint8)
        halves_QG += (scores_QG >= true_Q1 - tolerance_Q1).view(torch.uint8)
        ranks[rows] = halves_QG.sum(dim=1, dtype=torch.int32) / 2
    return ranks


def nearest(query: Tensor, gallery: Tensor, k: int, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Find the k gallery items with the largest inner product, best first.

    Returns:
        Scores [Q, k] and gallery indices int64 [Q, k].

    Raises:
        EvaluationError: a descriptor is zero or not finite.
    """
    _norms(query, "query")
    _norms(gallery, "gallery")
    blocks = [scores_QG.topk(k) for _, scores_QG in _score_blocks(query, gallery, block)]
    empty = query.new_empty(0, k), torch.empty(0, k, dtype=torch.int64, device=query.device)
    scores = torch.cat([empty[0], *(top.values for top in blocks)])
    return scores, torch.cat([empty[1], *(top.indices for top in blocks)])


@dataclass(frozen=True)
class Piece:
    """Some items of a gallery.

    Attributes:
        items: [G, D] descriptors.
        place: int64 [G], not negative.
        ids: int64 [G], not negative.
    """

    items: Tensor
    place: Tensor
    ids: Tensor


def nearest_at_other_places(
    query: Tensor, query_shown: Tensor, gallery: Iterable[Piece], k: int, block: int = BLOCK
) -> Tensor:
    """Find the k gallery items of other places with the largest inner product, best first.

    Of equal scores the item that comes first in the gallery is better. One piece of the gallery is
    searched at a time.

    Args:
        query: [Q, D].
        query_shown: int64 [Q, S], the places that each query belongs to; padding is negative.
        gallery: its pieces in order, on the queries' device.
        k: items of each query.
        block: queries scored at a time.

    Returns:
        Gallery ids int64 [Q, k], -1 where there are fewer.

    Raises:
        EvaluationError: a descriptor is zero or not finite.
    """
    _norms(query, "query")
    best = query.new_full((len(query), k), -math.inf)
    found = torch.full((len(query), k), -1, dtype=torch.int64, device=query.device)
    for piece in gallery:
        _norms(piece.items, "gallery")
        if len(piece.items) == 0:
            continue
        for rows, scores_QG in _score_blocks(query, piece.items, block):
            for place_Q in query_shown[rows].unbind(1):
                scores_QG.masked_fill_(place_Q.unsqueeze(1) == piece.place, -math.inf)
            top = _top(scores_QG, min(k, len(piece.items)))
            scores = torch.cat([best[rows], scores_QG.gather(1, top)], dim=1)
            ids = torch.cat([found[rows], piece.ids[top]], dim=1)
            best[rows], order = (each[:, :k] for each in scores.sort(descending=True, stable=True))
            found[rows] = ids.gather(1, order).masked_fill(best[rows] == -math.inf, -1)
    return found


def _top(scores_QG: Tensor, k: int) -> Tensor:
    """Return indices [Q, k] of the k largest scores, best first; of equal ones the first."""
    top = scores_QG.topk(k)
    least_Q1 = top.values[:, -1:]
    # Where more are as good as the least one, `topk` may have taken any of them.
    contested = ((scores_QG >= least_Q1).sum(dim=1) > k) & (least_Q1.squeeze(1) > -math.inf)
    indices = top.indices.sort(dim=1).values
    if contested.any():
        ordered = scores_QG[contested].sort(dim=1, descending=True, stable=True).indices
        indices[contested] = ordered[:, :k].sort(dim=1).values
    best_first = scores_QG.gather(1, indices).sort(dim=1, descending=True, stable=True).indices
    return indices.gather(1, best_first)


def recalls(ranks: NDArray[np.float64], gallery_size: int) -> dict[str, float]:
    """Share of the queries whose true item is among the first k, for k = 1, 5, 10 and 1 %.

    Args:
        ranks: float64 [Q] of `true_ranks`; a query is a hit when 1 + its rank is at most k.
        gallery_size: number of gallery items; 1 % of it is rounded down, to at least one.

    Raises:
        EvaluationError: there is no query.
    """
    if len(ranks) == 0:
        raise EvaluationError("the split is empty: nothing to evaluate")
    return {name: float(np.mean(ranks + 1 <= k)) for name, k in _depths(gallery_size).items()}


def chance(gallery_size: int) -> dict[str, float]:
    """Recalls of a random order of the gallery."""
    return {name: min(k / gallery_size, 1.0) for name, k in _depths(gallery_size).items()}


def _depths(gallery_size: int) -> dict[str, int]:
    return {"R@1": 1, "R@5": 5, "R@10": 10, "R@1%": max(1, gallery_size // 100)}


def _score_blocks(query: Tensor, gallery: Tensor, block: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield the scores of a block of queries, which the caller may write to until the next one."""
    # memory that is new for each block would cost the kernel as much time as the comparisons
    scores_QG = query.new_empty(min(block, len(query)), len(gallery))
    for start in range(0, len(query), block):
        rows = slice(start, min(start + block, len(query)))
        count = rows.stop - start
        yield rows, torch.mm(query[rows], gallery.T, out=scores_QG[:count])


def _rounding_error(query: Tensor, gallery: Tensor) -> Tensor:
    """Return the rounding tolerance of each query's inner products: [Q].

    Rounding errors of a sum of D products add up like a random walk, so about
    sqrt(D) * eps * |q| * |g|.
    """
    largest = _norms(gallery, "gallery").max()
    eps = torch.finfo(query.dtype).eps
    return _norms(query, "query") * largest * eps * math.sqrt(query.shape[1])


def _norms(descriptors: Tensor, name: str) -> Tensor:
    """Return the lengths [N] of descriptors [N, D].

    Raises:
        EvaluationError: one is zero or not finite.
    """
    norms: Tensor = torch.linalg.vector_norm(descriptors, dim=1)
    bad = ~(norms.isfinite() & (norms > 0))
    if bad.any():
        raise EvaluationError(
            f"{int(bad.sum())} of {len(bad)} {name} descriptors are zero or not finite, the first "
            f"is number {int(bad.nonzero()[0])}: the model has diverged, evaluate an earlier "
            "checkpoint"
        )
    return norms
