"""Samples that show the same place: a training batch may hold at most one of them."""

import numpy as np
from numpy.typing import NDArray

from data_shards.format.geodesy import canonical_longitude

Ids = NDArray[np.int64]


def place_numbers(
    positive: Ids,
    lat: NDArray[np.float64],
    lon: NDArray[np.float64],
    utm_e: NDArray[np.float64],
    utm_n: NDArray[np.float64],
    digests: NDArray[np.uint64] | None = None,
) -> Ids:
    """Number the places of N samples from 0: equal numbers, equal place.

    A place is what is known best of a sample: the number of the gallery tile that shows it, else
    its latitude and longitude, else its UTM position. A sample of which nothing is known shares its
    place with no other. Samples whose aerial images are equal show the same place as well, and so
    do all that are linked by a chain of such samples.

    Args:
        positive: number of the tile, negative where there is none; [N], as all others.
        lat: degrees, NaN where unknown.
        lon: degrees.
        utm_e: metres, NaN where unknown.
        utm_n: metres.
        digests: of the pixels of the aerial images, [N, 2], 0 where there is none; None: unknown.

    Returns:
        int64 [N]. Without equal aerial images the numbers are those without digests.
    """
    numbers = _by_best_knowledge(positive, lat, lon, utm_e, utm_n)
    return numbers if digests is None else _joined(numbers, digests)


def _by_best_knowledge(
    positive: Ids,
    lat: NDArray[np.float64],
    lon: NDArray[np.float64],
    utm_e: NDArray[np.float64],
    utm_n: NDArray[np.float64],
) -> Ids:
    numbers = np.empty(len(positive), dtype=np.int64)
    unnumbered = np.ones(len(positive), dtype=bool)
    count = 0
    tile = positive.astype(np.complex128)
    tile[positive < 0] = np.nan
    # A complex number is two columns that sort and compare as one.
    for known_as in (tile, lat + 1j * canonical_longitude(lat, lon), utm_e + 1j * utm_n):
        rows = np.flatnonzero(unnumbered & ~np.isnan(known_as))
        distinct, inverse = np.unique(known_as[rows], return_inverse=True)
        numbers[rows] = count + inverse
        unnumbered[rows] = False
        count += len(distinct)
    alone = np.flatnonzero(unnumbered)
    numbers[alone] = count + np.arange(len(alone))
    return numbers


def _joined(numbers: Ids, digests: NDArray[np.uint64]) -> Ids:
    """Join the places of samples with equal digests, in the order of their numbers."""
    rows = np.flatnonzero(digests.any(axis=1))
    rows = rows[np.lexsort((digests[rows, 1], digests[rows, 0]))]
    equal = (digests[rows[1:]] == digests[rows[:-1]]).all(axis=1)
    one, other = numbers[rows[1:][equal]], numbers[rows[:-1][equal]]
    if np.array_equal(one, other):
        return numbers
    # Every command would wait for them, and most data sets have no equal images.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    places = int(numbers.max()) + 1
    links = coo_array((np.ones(len(one), dtype=bool), (one, other)), (places, places))
    component = connected_components(links, directed=False)[1]
    first = np.unique(component, return_index=True)[1]  # the lowest number of each component
    return np.unique(first[component[numbers]], return_inverse=True)[1].astype(np.int64)
