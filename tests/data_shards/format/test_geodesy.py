"""Distances and maps: turned around the axis, and over a pole, they are what they were."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.format.geodesy import (
    EARTH_RADIUS_M,
    canonical_longitude,
    directions,
    great_circle_m,
    on_a_plane,
)

SEEDS = st.integers(0, 10_000)
TURNS = st.floats(-360, 360)


def wrapped(lon: np.ndarray) -> np.ndarray:
    """Longitudes as a data set writes them, -180 to 180."""
    return (lon + 180) % 360 - 180


def haversine_m(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Great-circle distances by the textbook's formula."""
    (lat, lon), (lat2, lon2) = np.radians(one).T, np.radians(other).T
    half = (
        np.sin((lat - lat2) / 2) ** 2 + np.cos(lat) * np.cos(lat2) * np.sin((lon - lon2) / 2) ** 2
    )
    return 2 * EARTH_RADIUS_M * np.arcsin(np.sqrt(half.clip(0, 1)))


def near(seed: int, lat: float, lon: float, metres: float = 2000.0, count: int = 6) -> np.ndarray:
    """Places within some metres of a point, wherever it is: turned there from the equator."""
    rng = np.random.default_rng(seed)
    flat = rng.uniform(-metres, metres, (count, 2)) / 1.5 / EARTH_RADIUS_M
    points = np.stack([np.ones(count), flat[:, 0], flat[:, 1]], axis=1)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    a, b = np.radians([lat, lon])
    over = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    around = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    x, y, z = (points @ over.T @ around.T).T
    return np.degrees(np.stack([np.arcsin(z.clip(-1, 1)), np.arctan2(y, x)], axis=1))


def test_metres_between_known_places():
    berlin, paris = [52.5200, 13.4050], [48.8566, 2.3522]
    apart = great_circle_m(
        np.array([berlin, berlin, [np.nan, 0.0]]), np.array([paris, berlin, paris])
    )
    assert apart[0] == pytest.approx(877_500, rel=1e-3)
    assert apart[1] == 0
    assert np.isnan(apart[2])


@given(SEEDS)
def test_distances_are_those_of_the_haversine_formula(seed):
    rng = np.random.default_rng(seed)
    one, other = (rng.uniform([-90, -180], [90, 180], (20, 2)) for _ in range(2))
    np.testing.assert_allclose(great_circle_m(one, other), haversine_m(one, other), rtol=1e-6)
    chords = np.linalg.norm(directions(one) - directions(other), axis=1)
    assert np.array_equal(np.argsort(chords), np.argsort(great_circle_m(one, other)))


@given(SEEDS, st.sampled_from([-90, -89.99, -45, 0, 60, 89.999, 90]), TURNS)
def test_a_map_of_near_places_is_true_everywhere(seed, lat, lon):
    places = near(seed, lat, lon)
    flat = on_a_plane(places)
    assert np.abs(flat).max() < 4000
    for row in range(len(places)):
        expected = haversine_m(places[[row] * len(places)], places)
        np.testing.assert_allclose(
            np.linalg.norm(flat - flat[row], axis=1), expected, rtol=1e-5, atol=0.01
        )


@given(SEEDS, st.floats(-80, 80), TURNS)
def test_a_map_does_not_know_which_meridian_is_the_first(seed, lat, turn):
    places = near(seed, lat, 10.0)
    turned = np.stack([places[:, 0], wrapped(places[:, 1] + turn)], axis=1)
    np.testing.assert_allclose(on_a_plane(turned), on_a_plane(places), atol=1e-3)


@pytest.mark.parametrize("lon", [0.0, 179.999, 180.0, -180.0])
def test_a_map_has_north_up_and_east_on_the_right(lon):
    steps = np.array([[0, 0], [0.001, 0], [0, 0.001]])
    places = np.array([40.0, lon]) + steps
    places[:, 1] = wrapped(places[:, 1])
    flat = on_a_plane(places)
    metres = np.radians(0.001) * EARTH_RADIUS_M
    np.testing.assert_allclose(flat[1] - flat[0], [0, metres], atol=0.01)
    np.testing.assert_allclose(flat[2] - flat[0], [metres * np.cos(np.radians(40)), 0], atol=0.01)


def test_places_all_around_the_globe_still_have_a_map():
    around = np.array([[0.0, 0.0], [0.0, 90.0], [0.0, 180.0], [0.0, -90.0]])
    assert np.isfinite(on_a_plane(around)).all()


def test_unknown_places_stay_unknown():
    places = np.array([[10.0, 20.0], [np.nan, 20.0], [10.0, 20.001]])
    flat = on_a_plane(places)
    assert np.isnan(flat[1]).all()
    assert np.isfinite(flat[[0, 2]]).all()
    assert np.isnan(on_a_plane(np.full((3, 2), np.nan))).all()
    assert on_a_plane(np.empty((0, 2))).shape == (0, 2)


def test_one_point_has_one_longitude():
    lat = np.array([10.0, 10.0, 90.0, 90.0, -90.0, np.nan])
    lon = np.array([180.0, -180.0, 17.0, -3.0, 5.0, 1.0])
    assert canonical_longitude(lat, lon).tolist() == [180, 180, 0, 0, 0, 1]
