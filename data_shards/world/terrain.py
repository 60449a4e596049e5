"""The landscape as rasters, and the things that can be put on it.

A terrain is a square of flat ground, north up, with the origin in its middle: x is east, y is
north, in metres; cell (row, column) has its centre at x = (column + 0.5)·CELL_M - HALF_M,
y = HALF_M - (row + 0.5)·CELL_M. On the ground are solids (buildings, cars, hedges, poles:
everything that reaches down to the ground), above it crowns (of trees and lamps), which the camera
can look under. Legend: N cells a side, n things, M materials.
"""

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from data_shards.format.classes import BUILDING, OBJECT, ROAD, VEGETATION, VEHICLE, VOID

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

CELLS = 448
CELL_M = 0.25
HALF_M = CELLS * CELL_M / 2
_CENTRES = ((np.arange(CELLS) + 0.5) * CELL_M - HALF_M).astype(np.float32)
EAST, NORTH = _CENTRES[None, :], -_CENTRES[:, None]
"""Coordinates of the cells' centres, [1, N] and [N, 1], metres."""


class Material(IntEnum):
    """Material of the ground."""

    GRASS = 0
    MEADOW = 1
    SOIL = 2
    CROP = 3
    STUBBLE = 4
    WATER = 5
    ASPHALT = 6
    PAVEMENT = 7
    GRAVEL = 8
    WHITE_LINE = 9
    YELLOW_LINE = 10


# Cityscapes counts bare and mown ground as terrain, which the contract groups with the road; it has
# no water.
CLASS_OF_MATERIAL: Bytes = np.full(len(Material), ROAD, np.uint8)
CLASS_OF_MATERIAL[Material.CROP] = VEGETATION
CLASS_OF_MATERIAL[Material.WATER] = VOID

SOLID = np.dtype(
    [
        ("class", "u1"),
        ("x", "f4"),
        ("y", "f4"),
        ("angle", "f4"),  # of the long axis, radians counter-clockwise from east
        ("half_length", "f4"),
        ("half_width", "f4"),
        ("eave", "f4"),  # the walls end here, the roof begins
        ("bay", "f4"),  # distance of the windows along the wall, 0 for none
        ("side", "f4", 3),
        ("top", "f4", 3),
    ]
)
CROWN = np.dtype(
    [
        ("class", "u1"),
        ("x", "f4"),
        ("y", "f4"),
        ("radius", "f4"),
        ("middle", "f4"),
        ("colour", "f4", 3),
    ]
)


@dataclass(slots=True)
class Terrain:
    """Rasters of one neighbourhood and tables of its objects (entry 0 of each is nothing)."""

    material: Bytes  # [N, N]
    tone: Floats  # [N, N] brightness of the ground, about 1
    grain: Floats  # [N, N] white noise, standard normal: the texture of leaves and roofs
    height: Floats  # [N, N] top of the solid, metres; 0 is ground
    solid: npt.NDArray[np.int16]  # [N, N] row of `solids`
    crown: npt.NDArray[np.int16]  # [N, N] row of `crowns`
    crown_base: Floats  # [N, N] metres
    crown_top: Floats  # [N, N] metres
    taken: npt.NDArray[np.bool_]  # [N, N] where nothing more may be built
    skyline_rad: Floats  # [A] elevation of what lies beyond the raster, from north clockwise
    solids: list[npt.NDArray[np.void]] = field(default_factory=lambda: [np.zeros((), SOLID)])
    crowns: list[npt.NDArray[np.void]] = field(default_factory=lambda: [np.zeros((), CROWN)])

    @classmethod
    def flat(cls, material: Material = Material.GRASS) -> "Terrain":
        """Return empty, even ground under an open sky."""
        shape = (CELLS, CELLS)
        return cls(
            material=np.full(shape, material, np.uint8),
            tone=np.ones(shape, np.float32),
            grain=np.zeros(shape, np.float32),
            height=np.zeros(shape, np.float32),
            solid=np.zeros(shape, np.int16),
            crown=np.zeros(shape, np.int16),
            crown_base=np.zeros(shape, np.float32),
            crown_top=np.zeros(shape, np.float32),
            taken=np.zeros(shape, np.bool_),
            skyline_rad=np.full(720, -1.0, np.float32),
        )

    def copy(self) -> "Terrain":
        """Return a terrain on which solids can be put without changing this one."""
        return Terrain(
            material=self.material,
            tone=self.tone,
            grain=self.grain,
            height=self.height.copy(),
            solid=self.solid.copy(),
            crown=self.crown,
            crown_base=self.crown_base,
            crown_top=self.crown_top,
            taken=self.taken,
            skyline_rad=self.skyline_rad,
            solids=list(self.solids),
            crowns=list(self.crowns),
        )

    def solid_table(self) -> npt.NDArray[np.void]:
        """Return the solids as one array [n] of SOLID."""
        return np.array(self.solids, SOLID)

    def crown_table(self) -> npt.NDArray[np.void]:
        """Return the crowns as one array [n] of CROWN."""
        return np.array(self.crowns, CROWN)

    def surface(self) -> Floats:
        """Return the height of what an aerial camera sees [N, N], metres."""
        return np.maximum(self.height, self.crown_top)

    def classes(self) -> Bytes:
        """Return the class ids that an aerial camera sees [N, N]."""
        ids = CLASS_OF_MATERIAL[self.material]
        ids = np.where(self.solid > 0, self.solid_table()["class"][self.solid], ids)
        seen = self.crown_top > self.height
        return np.where(seen, self.crown_table()["class"][self.crown], ids)


@dataclass(frozen=True, slots=True)
class Box:
    """An upright box, optionally with a gable: position and appearance."""

    x: float
    y: float
    angle: float
    half_length: float
    half_width: float
    eave: float
    side: Floats
    top: Floats
    rise: float = 0.0
    bay: float = 0.0
    label: int = BUILDING


def footprint(
    x: float, y: float, angle: float, half_length: float, half_width: float
) -> tuple[tuple[slice, slice], npt.NDArray[np.bool_], Floats]:
    """Return the raster window around a rectangle, its cells in it, and their |across| in metres.

    The window is empty where the rectangle lies outside the raster.
    """
    window, east, north = window_around(x, y, float(np.hypot(half_length, half_width)))
    along = east * np.float32(np.cos(angle)) + north * np.float32(np.sin(angle))
    across = np.abs(north * np.float32(np.cos(angle)) - east * np.float32(np.sin(angle)))
    return window, (np.abs(along) <= half_length) & (across <= half_width), across


def window_around(x: float, y: float, reach: float) -> tuple[tuple[slice, slice], Floats, Floats]:
    """Return the raster window of radius `reach` m around a point, and its cells' east and north.

    East is [1, w] and north is [h, 1], metres from the point.
    """
    row, column = (HALF_M - y) / CELL_M, (HALF_M + x) / CELL_M
    cells = reach / CELL_M
    rows = slice(_inside(row - cells), _inside(row + cells + 1))
    columns = slice(_inside(column - cells), _inside(column + cells + 1))
    east = EAST[:, columns] - np.float32(x)
    north = NORTH[rows] - np.float32(y)
    return (rows, columns), east, north


def _inside(cell: float) -> int:
    """Return the index of a cell, or of the raster's nearer end."""
    return min(max(int(cell), 0), CELLS)


def put_box(terrain: Terrain, box: Box) -> None:
    """Put a solid on the terrain; where another one is higher, that one stays."""
    window, inside, across = footprint(box.x, box.y, box.angle, box.half_length, box.half_width)
    roof = box.eave + box.rise * (1.0 - across / np.float32(box.half_width))
    inside &= roof > terrain.height[window]
    np.copyto(terrain.height[window], roof, where=inside)
    np.copyto(terrain.solid[window], len(terrain.solids), where=inside)
    row = (box.label, box.x, box.y, box.angle, box.half_length, box.half_width)
    terrain.solids.append(np.array((*row, box.eave, box.bay, box.side, box.top), SOLID))


def put_car(terrain: Terrain, x: float, y: float, angle: float, paint: Floats) -> None:
    """Put a car on the terrain: a body and a cabin. `angle` is radians from east."""
    glass = np.array([0.13, 0.15, 0.18], np.float32)
    put_box(terrain, Box(x, y, angle, 2.2, 0.9, 0.85, paint, paint, label=VEHICLE))
    back_x, back_y = x - 0.3 * np.cos(angle), y - 0.3 * np.sin(angle)
    put_box(terrain, Box(back_x, back_y, angle, 1.2, 0.8, 0.85, paint, glass, 0.8, label=VEHICLE))


def put_tree(
    terrain: Terrain, x: float, y: float, radius: float, height: float, conifer: bool, leaf: Floats
) -> None:
    """Put a tree on the terrain: a trunk, and a crown that is a ball or a cone."""
    bark = np.array([0.30, 0.24, 0.18], np.float32)
    base = 0.12 * height if conifer else max(0.25 * height, height - 2.0 * radius)
    trunk = Box(x, y, 0.0, 0.15, 0.15, base + 0.3 * (height - base), bark, bark, label=VEGETATION)
    put_box(terrain, trunk)
    window, east, north = window_around(x, y, radius)
    grain = terrain.grain[window]
    distance = np.sqrt(east * east + north * north) / np.float32(radius) + 0.09 * grain
    inside = distance < 1.0
    if conifer:
        top = height - (height - base) * distance
        bottom = np.full_like(top, base)
    else:
        bulge = 0.5 * (height - base) * np.sqrt(np.clip(1.0 - distance * distance, 0.0, 1.0))
        top, bottom = (height + base) / 2 + bulge, (height + base) / 2 - bulge
    higher = inside & (top > terrain.crown_top[window])
    lower = inside & ((terrain.crown[window] == 0) | (bottom < terrain.crown_base[window]))
    np.copyto(terrain.crown_base[window], bottom.astype(np.float32), where=lower)
    np.copyto(terrain.crown_top[window], top.astype(np.float32), where=higher)
    np.copyto(terrain.crown[window], len(terrain.crowns), where=higher)
    middle = (height + base) / 2
    terrain.crowns.append(np.array((VEGETATION, x, y, radius, middle, leaf), CROWN))


def put_lamp(terrain: Terrain, x: float, y: float) -> None:
    """Put a street lamp on the terrain."""
    steel = np.array([0.45, 0.46, 0.47], np.float32)
    put_box(terrain, Box(x, y, 0.0, 0.13, 0.13, 6.5, steel, steel, label=OBJECT))
    window, east, north = window_around(x, y, 0.8)
    head = np.maximum(np.abs(east), np.abs(north)) < 0.5
    np.copyto(terrain.crown_base[window], np.float32(6.3), where=head)
    np.copyto(terrain.crown_top[window], np.float32(6.6), where=head)
    np.copyto(terrain.crown[window], len(terrain.crowns), where=head)
    terrain.crowns.append(np.array((OBJECT, x, y, 0.5, 6.4, steel), CROWN))
