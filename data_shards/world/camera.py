"""The ground camera: which thing of the terrain each pixel of a panorama sees.

Ground is met exactly, where the ray crosses the plane; solids and crowns are met by sampling each
column's ray at growing distances. Legend: R rows, C columns, K samples along a ray.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from data_shards.format.classes import SKY, VEGETATION
from data_shards.world.terrain import (
    CELL_M,
    CELLS,
    CLASS_OF_MATERIAL,
    HALF_M,
    Bytes,
    Floats,
    Terrain,
)

Ints = npt.NDArray[np.integer]

ELEVATION_DEG = (-32.75, 32.75)
"""Bottom and top of a panorama of any size: CVUSA's."""
FAR_M = HALF_M - 2.0
"""Beyond this distance there is only plain ground and the skyline."""
_STEP = 0.009
_DISTANCES_M = np.geomspace(0.5, FAR_M, 1 + int(np.log(FAR_M / 0.5) / _STEP)).astype(np.float32)
_CROWN_STRIDE = 3


class Layer(IntEnum):
    """Kind of surface that a ray hits."""

    SKY = 0
    SKYLINE = 1
    GROUND = 2
    SOLID = 3
    CROWN = 4


@dataclass(frozen=True, slots=True)
class Pose:
    """Position of a panorama: metres east and north of the terrain's middle, and height."""

    x: float = 0.0
    y: float = 0.0
    height_m: float = 2.0
    heading_deg: float = 0.0
    """Heading of the centre column, clockwise from north."""


@dataclass(frozen=True, slots=True)
class View:
    """Hit of each pixel, [R, C] each: layer, distance (m), raster cell (flat), height (m)."""

    layer: Bytes
    distance: Floats
    cell: Ints
    z: Floats
    azimuth: Floats  # [C] radians clockwise from north
    elevation: Floats  # [R] radians


def azimuths(width: int, heading_deg: float, per_column: int = 1) -> Floats:
    """Return the azimuth of columns j = 0, 1/per_column, ... in radians clockwise from north."""
    columns = np.arange(width * per_column) / per_column
    degrees = 180.0 + 360.0 * columns / width + heading_deg
    return np.deg2rad(degrees).astype(np.float32)


def cast(terrain: Terrain, pose: Pose, elevation: Floats, azimuth: Floats) -> View:
    """Return what a camera sees at each elevation [R], descending and even, and azimuth [C]."""
    east, north = np.sin(azimuth), np.cos(azimuth)
    x = np.float32(pose.x) + _DISTANCES_M[:, None] * east
    y = np.float32(pose.y) + _DISTANCES_M[:, None] * north
    cells = cell_of(x, y)  # [K, C]
    reach = np.broadcast_to(_DISTANCES_M[:, None], cells.shape).copy()
    solid = _first_solid(terrain, pose, elevation, azimuth, cells, reach)
    crown = _first_crown(terrain, pose, elevation, cells)
    ground = np.full(len(elevation), np.inf, np.float32)
    below = elevation < 0
    ground[below] = pose.height_m / np.tan(-elevation[below])

    beyond = elevation[:, None] < _skyline(terrain, azimuth)
    layer = np.where(beyond, np.uint8(Layer.SKYLINE), np.uint8(Layer.SKY))
    distance = np.broadcast_to(ground[:, None], layer.shape).copy()
    layer[below] = Layer.GROUND
    near = np.minimum(distance, np.float32(FAR_M))
    cell = cell_of(np.float32(pose.x) + near * east, np.float32(pose.y) + near * north)
    for sample, kind in ((solid, Layer.SOLID), (crown, Layer.CROWN)):
        met = sample < len(cells)
        k, column = sample[met], np.nonzero(met)[1]
        nearer = np.zeros_like(met)
        nearer[met] = reach[k, column] < distance[met]
        k, column = sample[nearer], np.nonzero(nearer)[1]
        layer[nearer] = kind
        distance[nearer] = reach[k, column]
        cell[nearer] = cells[k, column]
    drop = np.minimum(distance, np.float32(1e6)) * np.tan(elevation)[:, None]
    z = np.float32(pose.height_m) + drop
    return View(layer, distance, cell, z.astype(np.float32), azimuth, elevation)


def class_map(terrain: Terrain, view: View) -> Bytes:
    """Return the class id of each pixel [R, C]."""
    classes = np.array([SKY, VEGETATION, 0, 0, 0], np.uint8)[view.layer]
    on = view.layer == Layer.GROUND
    classes[on] = CLASS_OF_MATERIAL[terrain.material.ravel()[view.cell[on]]]
    on = view.layer == Layer.SOLID
    classes[on] = terrain.solid_table()["class"][terrain.solid.ravel()[view.cell[on]]]
    on = view.layer == Layer.CROWN
    classes[on] = terrain.crown_table()["class"][terrain.crown.ravel()[view.cell[on]]]
    return classes


def cell_of(x: Floats, y: Floats) -> Ints:
    """Return the flat index of the raster cells that hold points; outside, of the nearest cell."""
    columns = ((x + np.float32(HALF_M)) * np.float32(1 / CELL_M)).astype(np.int32)
    rows = ((np.float32(HALF_M) - y) * np.float32(1 / CELL_M)).astype(np.int32)
    flat = np.clip(rows, 0, CELLS - 1) * CELLS + np.clip(columns, 0, CELLS - 1)
    return flat.astype(np.int32)


def _skyline(terrain: Terrain, azimuth: Floats) -> Floats:
    """Return the skyline's elevation [C], radians."""
    count = len(terrain.skyline_rad)
    turns = np.mod(azimuth / (2 * np.pi), 1.0)
    elevation: Floats = terrain.skyline_rad[(turns * count).astype(np.int32) % count]
    return elevation


def _rows_below(elevation: Floats, angle: Floats) -> Ints:
    """Return the first row whose elevation is `angle` or lower (R if none)."""
    step = (elevation[0] - elevation[-1]) / np.float32(len(elevation) - 1)
    first = np.ceil((elevation[0] - angle) / step - 1e-4)
    rows: Ints = np.clip(first, 0, len(elevation)).astype(np.int32)
    return rows


def _first_solid(
    terrain: Terrain, pose: Pose, elevation: Floats, azimuth: Floats, cells: Ints, reach: Floats
) -> Ints:
    """Return the first sample [R, C] whose solid reaches up to each ray, K for none.

    Where a ray enters a solid, its sample's entry of `reach` [K, C] is made exact.
    """
    solid = terrain.solid.ravel()[cells]
    k, column = np.nonzero(solid)
    number = solid[k, column]
    entered = solid[np.maximum(k - 1, 0), column] != number
    at = k[entered], column[entered]
    reach[at] = _entry(terrain, pose, number[entered], azimuth[at[1]], reach[at])
    rise = terrain.height.ravel()[cells[k, column]] - np.float32(pose.height_m)
    row = _rows_below(elevation, np.arctan2(rise, reach[k, column]))
    first = _nearest(row, column, k, (len(elevation) + 1, len(azimuth)), len(cells))
    return np.minimum.accumulate(first[:-1], axis=0)


def _entry(
    terrain: Terrain, pose: Pose, number: npt.NDArray[np.int16], azimuth: Floats, sampled: Floats
) -> Floats:
    """Return where rays enter their boxes: exact, where the raster is a cell or a step late."""
    box = terrain.solid_table()[number]
    turn = np.pi / 2 - azimuth - box["angle"]
    cos, sin = np.cos(box["angle"]), np.sin(box["angle"])
    east, north = pose.x - box["x"], pose.y - box["y"]
    inward = np.zeros_like(sampled)
    for start, speed, half in (
        (east * cos + north * sin, np.cos(turn), box["half_length"]),
        (north * cos - east * sin, np.sin(turn), box["half_width"]),
    ):
        with np.errstate(divide="ignore", invalid="ignore"):
            near = np.minimum((-half - start) / speed, (half - start) / speed)
        inward = np.fmax(inward, near)
    late = np.abs(inward - sampled) < 2 * CELL_M + 2 * _STEP * sampled
    return np.where(late, inward, sampled).astype(np.float32)


def _first_crown(terrain: Terrain, pose: Pose, elevation: Floats, cells: Ints) -> Ints:
    """Return the sample [R, C] whose crown each ray meets first, K for none."""
    k, column = np.nonzero(terrain.crown.ravel()[cells[::_CROWN_STRIDE]])
    k *= _CROWN_STRIDE
    inside = cells[k, column]
    distance = _DISTANCES_M[k]
    eye = np.float32(pose.height_m)
    top = _rows_below(elevation, np.arctan2(terrain.crown_top.ravel()[inside] - eye, distance))
    base = _rows_below(elevation, np.arctan2(terrain.crown_base.ravel()[inside] - eye, distance))
    count = base - top
    sample = np.repeat(np.arange(len(k)), count)
    row = np.arange(len(sample)) - np.repeat(np.cumsum(count) - count, count) + top[sample]
    shape = len(elevation), cells.shape[1]
    return _nearest(row, column[sample], k[sample], shape, len(cells))


def _nearest(row: Ints, column: Ints, k: Ints, shape: tuple[int, int], none: int) -> Ints:
    """Return the least k of those that fall on each pixel, `none` where none does."""
    first = np.full(shape, none, k.dtype)
    np.minimum.at(first.reshape(-1), row * shape[1] + column, k)  # flat: numpy's fast path
    return first
