import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smdt.geometry.radius import GroundCamera, mixed_radius, perspective_radius, polar_radius

heights = st.integers(2, 160)
sides = st.integers(2, 1300)
views = st.builds(
    GroundCamera,
    camera_height_m=st.floats(0.5, 10),
    extent_m=st.floats(20, 400),
    elevation_deg=st.tuples(st.floats(-90, 20), st.floats(25, 90)),
)
CVUSA = GroundCamera(2.0, 172.0, (-32.75, 32.75))


def perspective_oracle(row: int, height: int, side: int, view: GroundCamera) -> float:
    bottom, top = view.elevation_deg
    delta = (top - bottom) / height
    angle = (row + 0.5 - top / delta) * delta
    if angle <= 0:
        return math.inf
    cotangent = math.cos(math.radians(angle)) / math.sin(math.radians(angle))
    return min(view.camera_height_m * cotangent * side / view.extent_m, side / 2)


@given(heights, sides)
def test_polar_is_the_published_formula(height, side):
    radius = polar_radius(np.arange(height, dtype=float), height, side)
    for row in range(height):
        assert math.isclose(radius[row], side / 2 * (height - 1 - row) / height, abs_tol=1e-9)


@given(heights, sides, views)
def test_perspective_is_a_ray_that_meets_the_ground(height, side, view):
    radius = perspective_radius(np.arange(height, dtype=float), height, side, view)
    for row in range(height):
        expected = perspective_oracle(row, height, side, view)
        assert radius[row] == expected or math.isclose(
            radius[row], expected, rel_tol=1e-9, abs_tol=1e-9
        )


@given(heights, sides, views)
def test_mixed_is_polar_then_perspective_from_the_first_row_where_they_meet(height, side, view):
    rows = np.arange(height, dtype=float)
    mixed = mixed_radius(rows, height, side, view)
    polar = polar_radius(rows, height, side)
    perspective = perspective_radius(rows, height, side, view)
    junction = next((i for i in range(height) if perspective[i] <= polar[i]), height)
    np.testing.assert_array_equal(mixed[:junction], polar[:junction])
    np.testing.assert_array_equal(mixed[junction:], perspective[junction:])


@given(heights, sides, views)
def test_mixed_is_monotone_continuous_and_inside_the_tile(height, side, view):
    radius = mixed_radius(np.arange(height, dtype=float), height, side, view)
    step = -np.diff(radius)
    assert (step >= 0).all()
    assert (radius >= 0).all()
    assert (radius <= side / 2).all()
    # the steepest slope of either profile: polar's, and the perspective's where it is S / 2
    focal = view.camera_height_m * side / view.extent_m
    range_rad = math.radians(view.elevation_deg[1] - view.elevation_deg[0])
    slope = side / 2 + range_rad * ((side / 2) ** 2 + focal**2) / focal
    assert (step <= slope / height + 1e-9).all()


@given(views)
def test_the_extent_does_not_change_when_the_image_is_resized(view):
    rows = np.arange(64, dtype=float)
    small, large = mixed_radius(rows, 64, 500, view), mixed_radius(rows, 64, 1000, view)
    np.testing.assert_allclose(2 * small, large)


def test_cvusa_joins_below_the_horizon_and_looks_at_the_camera_foot():
    rows = np.arange(128, dtype=float)
    mixed, polar = mixed_radius(rows, 128, 750, CVUSA), polar_radius(rows, 128, 750)
    junction = int(np.argmax(mixed != polar))
    assert 64 < junction < 80
    # the lowest row: 32.5 degrees down from 2 m is 3.1 m away, 13.7 pixels
    assert math.isclose(mixed[-1], 2 / math.tan(math.radians(32.494)) * 750 / 172, rel_tol=1e-3)


def test_a_panorama_of_the_sky_is_polar():
    rows = np.arange(32, dtype=float)
    sky = GroundCamera(2.0, 172.0, (0.0, 90.0))
    np.testing.assert_array_equal(mixed_radius(rows, 32, 64, sky), polar_radius(rows, 32, 64))
    assert np.isinf(perspective_radius(rows, 32, 64, sky)).all()
