"""Statistics of a retrieval for the report (pure).

Q queries.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DEPTHS = 40
"""Maximum number of points of a recall curve."""

Floats = NDArray[np.float64]


def recall_curve(ranks: Floats, gallery_size: int) -> list[tuple[int, float]]:
    """Return the recall at depths from 1 to the whole gallery, evenly spaced in the logarithm.

    Args:
        ranks: float64 [Q] of `true_ranks`, at least one.
        gallery_size: number of gallery items.
    """
    depths = np.unique(np.geomspace(1, gallery_size, DEPTHS).round().astype(int))
    return [(int(k), float(np.mean(ranks + 1 <= k))) for k in depths]


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` of `count` positions, evenly spaced, both ends with them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def centred(positions: Floats) -> Floats:
    """Return positions [n, 2] from the middle of those that are known."""
    unknown = np.isnan(positions).any(axis=1)
    return positions if unknown.all() else positions - positions[~unknown].mean(axis=0)


def known(values: Floats) -> list[float | None]:
    """Return values as JSON holds them: None is unknown."""
    return [None if np.isnan(value) else round(float(value), 4) for value in values]


def best_negative_score(items: Sequence[int], scores: Sequence[float], right: set[int]) -> float:
    """Return the score of the first of some items, best first, that is not right; NaN without."""
    wrong = (score for item, score in zip(items, scores, strict=True) if item not in right)
    return next(wrong, float("nan"))


def score_text(name: str, value: float) -> str:
    """Format a score: recall and IoU in percent, PSNR and SD in decibels, others unchanged."""
    if name.startswith("R@") or "IoU" in name or name == "hit rate":
        return f"{value:.2%}"
    if name in ("PSNR", "SD"):
        return f"{value:.2f} dB"
    return f"{value:.4f}"
