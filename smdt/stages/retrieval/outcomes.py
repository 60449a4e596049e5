"""What a search came to for some of its queries: similarities, and errors in metres.

Q queries of all ranks.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.format.globe import metres_apart, on_a_plane
from smdt.data.split import Split
from smdt.evaluation.outcomes import best_wrong, centred, evenly, known
from smdt.evaluation.recall import nearest
from smdt.stages.retrieval.ranking import Search
from smdt.training.ranks.gathering import gather_ragged

MOST = 1000
"""Queries that are looked at, evenly spaced."""


def outcomes(found: Search, ranks: NDArray[np.float64]) -> dict[str, Any]:
    """Return similarities and errors of up to `MOST` queries; every rank calls it.

    Args:
        found: what was searched.
        ranks: float64 [Q] of all queries.

    Returns:
        Lists by name, an entry for each query: `rank`, `true_score` and `wrong_score` (similarity
        of the nearest right and the nearest wrong item), `east_m` and `north_m` (its place, from
        the middle of all), `error_m` (how far the nearest item is from it). None is unknown.
    """
    chosen = evenly(len(ranks), MOST)
    own = chosen[(chosen >= found.first) & (chosen < found.first + len(found.query_ids))]
    rows = own - found.first
    right = found.truth.right[rows]
    query = found.query[torch.from_numpy(rows).to(found.query.device)]
    scores, items = (
        part.cpu()
        for part in nearest(query, found.items, min(right.shape[1] + 1, len(found.items)))
    )
    true = torch.einsum("qd,qrd->qr", query, found.items[torch.from_numpy(right)]).amax(dim=1)
    wrong = [
        best_wrong(at.tolist(), score.tolist(), set(good.tolist()))
        for at, score, good in zip(items, scores, right, strict=True)
    ]
    globe = bool((~np.isnan(found.queries.column("lat"))).any())
    places = positions(found.queries, globe, found.query_ids[rows])
    tiles = positions(found.gallery, globe, found.gallery_ids[items[:, 0].numpy()])
    error = metres_apart(places, tiles) if globe else np.linalg.norm(places - tiles, axis=1)
    table = np.column_stack([true.cpu().double(), wrong, places, error])
    gathered = gather_ragged(torch.from_numpy(table).to(found.query.device)).cpu().numpy()
    east_north = on_a_plane(gathered[:, 2:4]) if globe else centred(gathered[:, 2:4])
    return {
        "rank": known(ranks[chosen]),
        "true_score": known(gathered[:, 0]),
        "wrong_score": known(gathered[:, 1]),
        "east_m": known(east_north[:, 0]),
        "north_m": known(east_north[:, 1]),
        "error_m": known(gathered[:, 4]),
    }


def positions(split: Split, globe: bool, sample_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return where samples are [n, 2]: on the globe latitude and longitude, else UTM; NaN unknown.

    A data set without latitudes, such as CVACT, has UTM positions of one zone.
    """
    names = ("lat", "lon") if globe else ("utm_e", "utm_n")
    return np.stack([split.column(name)[sample_ids] for name in names], axis=1).astype(np.float64)
