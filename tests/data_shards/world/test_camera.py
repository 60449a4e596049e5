"""The panorama against geometry done by hand, in float64."""

import numpy as np
import pytest

from data_shards.format.classes import BUILDING, OBJECT, ROAD, SKY, VEGETATION, VOID
from data_shards.world.camera import (
    ELEVATION_DEG,
    Pose,
    azimuths,
    cast,
    class_map,
)
from data_shards.world.terrain import (
    CELL_M,
    CELLS,
    HALF_M,
    Box,
    Material,
    Terrain,
    put_box,
    put_lamp,
    put_tree,
)

HEIGHT, WIDTH = 128, 512
WHITE = np.ones(3, np.float32)


def rows_elevation_deg():
    bottom, top = ELEVATION_DEG
    return top - (np.arange(HEIGHT) + 0.5) * (top - bottom) / HEIGHT


def see(terrain, pose=None):
    pose = pose or Pose()
    elevation = np.deg2rad(rows_elevation_deg()).astype(np.float32)
    view = cast(terrain, pose, elevation, azimuths(WIDTH, pose.heading_deg))
    return class_map(terrain, view)


def block(x, y, height=12.0, half=3.0):
    terrain = Terrain.flat()
    put_box(terrain, Box(x, y, 0.0, half, half, height, WHITE, WHITE))
    return terrain


def test_open_country_is_sky_above_the_horizon_and_ground_below():
    classes = see(Terrain.flat())
    assert (classes[: HEIGHT // 2] == SKY).all()
    assert (classes[HEIGHT // 2 :] == ROAD).all()


@pytest.mark.parametrize(
    ("x", "y", "column"),
    [(0, 20, WIDTH // 2), (20, 0, 3 * WIDTH // 4), (0, -20, 0), (-20, 0, WIDTH // 4)],
)
def test_a_block_stands_in_the_column_that_looks_at_it(x, y, column):
    classes = see(block(x, y))
    assert classes[HEIGHT // 2, column] == BUILDING
    built = (classes == BUILDING).any(axis=0)
    offsets = (np.nonzero(built)[0] - column + WIDTH // 2) % WIDTH - WIDTH // 2
    half_angle = np.rad2deg(np.arctan2(3.0, 20.0 - 3.0))
    assert abs(offsets.max() * 360 / WIDTH - half_angle) < 1.5
    assert abs(offsets.min() * 360 / WIDTH + half_angle) < 1.5


@pytest.mark.parametrize("distance", [8.0, 15.3, 31.7])
@pytest.mark.parametrize("height", [4.0, 7.5])
def test_the_top_edge_of_a_block_is_where_trigonometry_puts_it(distance, height):
    classes = see(block(0.0, distance + 3.0, height))
    column = classes[:, WIDTH // 2]
    edge = np.rad2deg(np.arctan2(height - 2.0, distance))
    foot = np.rad2deg(np.arctan2(-2.0, distance))
    elevation = rows_elevation_deg()
    expected = np.where(elevation > edge, SKY, np.where(elevation > foot, BUILDING, ROAD))
    clear = np.minimum(np.abs(elevation - edge), np.abs(elevation - foot)) > 0.15
    np.testing.assert_array_equal(column[clear], expected[clear])


def test_the_nearer_block_hides_the_farther_one():
    terrain = block(0.0, 30.0, height=5.0)
    put_box(terrain, Box(0.0, 12.0, 0.0, 3.0, 1.0, 5.0, WHITE, WHITE, label=OBJECT))
    column = see(terrain)[:, WIDTH // 2]
    assert OBJECT in column
    assert BUILDING not in column


def test_one_sees_below_a_crown_but_not_through_it():
    terrain = block(0.0, 30.0, height=20.0)
    put_tree(terrain, 0.0, 12.0, 3.0, 9.0, conifer=False, leaf=WHITE)
    classes = see(terrain)
    beside_trunk = WIDTH // 2 + 6
    elevation = rows_elevation_deg()
    crown = np.abs(elevation - np.rad2deg(np.arctan2(4.0, 12.0))) < 4
    below = (elevation > 0) & (elevation < 3)
    assert (classes[crown, beside_trunk] == VEGETATION).all()
    assert (classes[below, beside_trunk] == BUILDING).all()


def test_a_lamp_is_an_object():
    terrain = Terrain.flat()
    put_lamp(terrain, 6.0, 0.0)
    assert see(terrain)[HEIGHT // 2, 3 * WIDTH // 4] == OBJECT


def test_heading_turns_the_panorama():
    north = see(block(0.0, 20.0))
    turned = see(block(0.0, 20.0), Pose(heading_deg=90.0))
    np.testing.assert_array_equal(np.roll(north, -WIDTH // 4, axis=1), turned)


def test_flat_ground_is_the_aerial_class_raster_under_the_perspective_mapping():
    rng = np.random.default_rng(3)
    terrain = Terrain.flat()
    patches = rng.choice([Material.GRASS, Material.CROP, Material.WATER], (32, 32))
    terrain.material[:] = patches.repeat(CELLS // 32, 0).repeat(CELLS // 32, 1)
    aerial = terrain.classes()
    assert set(np.unique(aerial)) == {ROAD, VEGETATION, VOID}
    classes = see(terrain)
    # docs/mapping.md: x = S/2 - r sin(2 pi j / W), y = S/2 + r cos(2 pi j / W).
    depression = np.deg2rad(-rows_elevation_deg()[HEIGHT // 2 :])
    radius = 2.0 / np.tan(depression) / CELL_M
    angle = 2 * np.pi * np.arange(WIDTH) / WIDTH
    x = CELLS / 2 - radius[:, None] * np.sin(angle)
    y = CELLS / 2 + radius[:, None] * np.cos(angle)
    near = (radius < (HALF_M - 4) / CELL_M)[:, None]
    size = CELLS // 32
    interior = (np.abs(x % size - size / 2) < size / 2 - 0.1) & (
        np.abs(y % size - size / 2) < size / 2 - 0.1
    )
    check = near & interior
    assert check.sum() > 0.4 * check.size
    cells = np.clip(y.astype(int), 0, CELLS - 1), np.clip(x.astype(int), 0, CELLS - 1)
    np.testing.assert_array_equal(classes[HEIGHT // 2 :][check], aerial[cells][check])
