"""Places: what is known best of a sample decides."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_shards.format.places import place_numbers

NAN = math.nan
COORDINATES = st.sampled_from([NAN, 0.0, -0.0, 1.0, 2.0])
LATITUDES = st.sampled_from([NAN, 0.0, -0.0, 1.0, 90.0, -90.0])
LONGITUDES = st.sampled_from([NAN, 0.0, -0.0, 1.0, 180.0, -180.0])
SAMPLES = st.lists(
    st.tuples(st.integers(-1, 2), LATITUDES, LONGITUDES, COORDINATES, COORDINATES), max_size=30
)


def known_as(sample: tuple[float, ...]) -> tuple[object, ...] | None:
    tile, lat, lon, utm_e, utm_n = sample
    if tile >= 0:
        return "tile", tile
    if not math.isnan(lat) and not math.isnan(lon):
        return "globe", lat, 0 if abs(lat) == 90 else abs(lon) if abs(lon) == 180 else lon
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


def of_samples(samples: list[tuple[float, ...]], digests: np.ndarray | None) -> np.ndarray:
    columns = np.array(samples, dtype=float).reshape(-1, 5).T
    return place_numbers(columns[0].astype(np.int64), *columns[1:], digests=digests)


@given(SAMPLES, st.data())
def test_chains_of_equal_tiles_and_equal_knowledge_are_one_place(samples, data):
    """Against joining set with set, one pair of samples after the other; 0 is no tile."""
    tiles = data.draw(st.lists(st.integers(0, 6), min_size=len(samples), max_size=len(samples)))
    digests = np.array([[tile // 3, tile % 3] for tile in tiles], dtype=np.uint64).reshape(-1, 2)
    groups = [{i} for i in range(len(samples))]
    for i, a in enumerate(samples):
        for j, b in enumerate(samples):
            known = known_as(a) is not None and known_as(a) == known_as(b)
            if (known or (tiles[i] > 0 and tiles[i] == tiles[j])) and groups[i] is not groups[j]:
                groups[i] |= groups[j]
                for member in groups[j]:
                    groups[member] = groups[i]
    numbers = of_samples(samples, digests)
    assert numbers.dtype == np.int64
    assert sorted(set(numbers.tolist())) == list(range(len(set(numbers.tolist()))))
    for i, group in enumerate(groups):
        assert set(np.flatnonzero(numbers == numbers[i])) == group


@given(SAMPLES)
def test_without_equal_tiles_the_numbers_are_those_of_the_coordinates(samples):
    digests = np.arange(2, 2 * len(samples) + 2, dtype=np.uint64).reshape(-1, 2)
    assert np.array_equal(of_samples(samples, digests), of_samples(samples, None))
    assert np.array_equal(of_samples(samples, 0 * digests), of_samples(samples, None))
