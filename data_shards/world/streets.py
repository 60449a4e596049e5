"""Streets and water: bands along a gently bent line, painted into the ground."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_shards.world.terrain import EAST, NORTH, Floats, Material, Terrain


@dataclass(frozen=True, slots=True)
class Street:
    """A band along the line across = offset + bend/2·along².

    `along` and `across` are coordinates turned by `angle` (radians from east); lengths in metres.
    """

    angle: float
    offset: float
    bend: float
    half_width: float
    sidewalk: float
    begin: float = -np.inf
    """The street exists where along >= begin."""
    surface: Material = Material.ASPHALT
    centre_line: Material | None = None
    edge_lines: bool = False
    crossings: bool = False
    """Zebra crossings where it meets other streets."""

    def coordinates(self, east: Floats, north: Floats) -> tuple[Floats, Floats]:
        """Return (along, distance to the left of the centre line) of points, metres."""
        cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        along = east * cos + north * sin
        left = (north * cos - np.float32(self.offset)) - east * sin
        if self.bend:
            left -= np.float32(self.bend / 2) * along * along
        return along, left

    def point(self, along: float, left: float) -> tuple[float, float, float]:
        """Return x, y of a point next to the street and the street's direction there, radians."""
        across = left + self.offset + self.bend / 2 * along**2
        cos, sin = float(np.cos(self.angle)), float(np.sin(self.angle))
        x, y = along * cos - across * sin, along * sin + across * cos
        return x, y, self.angle + float(np.arctan(self.bend * along))


def pave(terrain: Terrain, streets: list[Street]) -> None:
    """Paint streets, their sidewalks, crossings and lines; nothing is built on them."""
    placed = [(street, *street.coordinates(EAST, NORTH)) for street in streets]
    carriageways = []
    for street, along, left in placed:
        beside = np.abs(left)
        exists = along >= street.begin
        carriageways.append((beside < street.half_width) & exists)
        walk = (beside < street.half_width + street.sidewalk) & exists
        terrain.taken |= walk
        if street.sidewalk > 0:
            np.copyto(terrain.material, np.uint8(Material.PAVEMENT), where=walk)
    np.copyto(terrain.tone, 1.0 + np.float32(0.04) * terrain.grain, where=terrain.taken)
    meetings = np.zeros(terrain.taken.shape, np.uint8)
    for (street, _, _), carriageway in zip(placed, carriageways, strict=True):
        np.copyto(terrain.material, np.uint8(street.surface), where=carriageway)
        meetings += carriageway
    for (street, along, left), carriageway in zip(placed, carriageways, strict=True):
        alone = carriageway & (meetings == 1)
        _paint_lines(terrain, street, along, left, alone)
        if street.crossings:
            stripes = alone & _every(1.2, left)
            for other, _, other_left in placed:
                if other is not street and other.sidewalk > 0:
                    gap = np.abs(np.abs(other_left) - np.float32(other.half_width + 2.1))
                    np.copyto(
                        terrain.material, np.uint8(Material.WHITE_LINE), where=stripes & (gap < 1.3)
                    )


def _paint_lines(
    terrain: Terrain,
    street: Street,
    along: Floats,
    left: Floats,
    where: npt.NDArray[np.bool_],
) -> None:
    """Paint the centre line (white ones are dashed) and the edge lines."""
    beside = np.abs(left)
    if street.centre_line is not None:
        line = (beside < 0.16) & where
        if street.centre_line == Material.WHITE_LINE:
            line &= _every(6.0, along)
        np.copyto(terrain.material, np.uint8(street.centre_line), where=line)
    if street.edge_lines:
        edge = np.abs(beside - np.float32(street.half_width - 0.35)) < 0.13
        np.copyto(terrain.material, np.uint8(Material.WHITE_LINE), where=edge & where)


def _every(period_m: float, distance: Floats) -> npt.NDArray[np.bool_]:
    """Return the first half of each period; numpy's `mod` is many times slower."""
    turns = distance * np.float32(1.0 / period_m)
    first: npt.NDArray[np.bool_] = turns - np.floor(turns) < 0.5
    return first


def flood(terrain: Terrain, river: Street) -> None:
    """Paint a river with banks; nothing is built in it."""
    _, left = river.coordinates(EAST, NORTH)
    beside = np.abs(left)
    terrain.material[beside < river.half_width + 1.5] = Material.SOIL
    water = beside < river.half_width
    terrain.material[water] = Material.WATER
    terrain.tone[water] = 1.0
    terrain.taken |= beside < river.half_width + 1.5
