"""Statistics of a search for some of its queries: similarities, and errors in metres.

Q queries of all ranks.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.format.geodesy import great_circle_m, on_a_plane
from smdt.data.split import Split
from smdt.evaluation.outcomes import best_negative_score, centred, evenly, known
from smdt.evaluation.recall import nearest
from smdt.stages.retrieval.ranking import SearchResult
from smdt.training.ranks.gathering import all_gather_ragged

MAX_QUERIES = 1000
"""Maximum number of queries in the statistics, evenly spaced."""


def outcomes(found: SearchResult, ranks: NDArray[np.float64]) -> dict[str, Any]:
    """Return similarities and errors of up to `MAX_QUERIES` queries; every rank calls it.

    Args:
        found: what was searched.
        ranks: float64 [Q] of all queries.

    Returns:
        Lists by name, an entry for each query: `rank`, `true_score` and `wrong_score` (similarity
        of the nearest right and the nearest wrong item), `east_m` and `north_m` (its place, from
        the middle of all), `error_m` (how far the nearest item is from it). None is unknown.
    """
    chosen = evenly(len(ranks), MAX_QUERIES)
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
        best_negative_score(at.tolist(), score.tolist(), set(good.tolist()))
        for at, score, good in zip(items, scores, right, strict=True)
    ]
    globe = bool((~np.isnan(found.queries.column("lat"))).any())
    places = positions(found.queries, globe, found.query_ids[rows])
    tiles = positions(found.gallery, globe, found.gallery_ids[items[:, 0].numpy()])
    error = great_circle_m(places, tiles) if globe else np.linalg.norm(places - tiles, axis=1)
    table = np.column_stack([true.cpu().double(), wrong, places, error])
    gathered = all_gather_ragged(torch.from_numpy(table).to(found.query.device)).cpu().numpy()
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
