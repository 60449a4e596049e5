"""Places: what is known best of a sample decides."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_shards.places import place_numbers

NAN = math.nan
COORDINATES = st.sampled_from([NAN, 0.0, -0.0, 1.0, 2.0])
SAMPLES = st.lists(
    st.tuples(st.integers(-1, 2), COORDINATES, COORDINATES, COORDINATES, COORDINATES), max_size=30
)


def known_as(sample: tuple[float, ...]) -> tuple[object, ...] | None:
    tile, lat, lon, utm_e, utm_n = sample
    if tile >= 0:
        return "tile", tile
    if not math.isnan(lat) and not math.isnan(lon):
        return "globe", lat, lon
    if not math.isnan(utm_e) and not math.isnan(utm_n):
        return "utm", utm_e, utm_n
    return None


@given(SAMPLES)
def test_equal_numbers_mean_the_same_best_knowledge(samples):
    columns = np.array(samples, dtype=float).reshape(-1, 5).T
    numbers = place_numbers(columns[0].astype(np.int64), *columns[1:])
    assert numbers.dtype == np.int64
    assert sorted(set(numbers.tolist())) == list(range(len(set(numbers.tolist()))))
    for i, a in enumerate(samples):
        for j, b in enumerate(samples):
            same = i == j or (known_as(a) is not None and known_as(a) == known_as(b))
            assert (numbers[i] == numbers[j]) == same
