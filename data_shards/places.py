"""Which samples show the same place: no training batch may hold two of them."""

import numpy as np
from numpy.typing import NDArray


def place_numbers(
    positive: NDArray[np.int64],
    lat: NDArray[np.float64],
    lon: NDArray[np.float64],
    utm_e: NDArray[np.float64],
    utm_n: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Number the places of N samples from 0: equal numbers, equal place.

    A place is what is known best of a sample: the gallery tile that shows it, else its latitude
    and longitude, else its UTM position. Of a sample of which nothing is known nobody else shares
    the place.

    Args:
        positive: number of the tile, negative where there is none; [N], as all others.
        lat: degrees, NaN where unknown.
        lon: degrees.
        utm_e: metres, NaN where unknown.
        utm_n: metres.

    Returns:
        int64 [N].
    """
    numbers = np.empty(len(positive), dtype=np.int64)
    unnumbered = np.ones(len(positive), dtype=bool)
    count = 0
    tile = positive.astype(np.complex128)
    tile[positive < 0] = np.nan
    # A complex number is two columns that sort and compare as one.
    for known_as in (tile, lat + 1j * lon, utm_e + 1j * utm_n):
        rows = np.flatnonzero(unnumbered & ~np.isnan(known_as))
        distinct, inverse = np.unique(known_as[rows], return_inverse=True)
        numbers[rows] = count + inverse
        unnumbered[rows] = False
        count += len(distinct)
    alone = np.flatnonzero(unnumbered)
    numbers[alone] = count + np.arange(len(alone))
    return numbers
