"""Streets and water: bands along a gently bent line, painted into the ground."""

from dataclasses import dataclass

import numpy as np

from data_shards.world.terrain import CELL_M, CELLS, HALF_M, Floats, Material, Terrain

_CENTRES = ((np.arange(CELLS, dtype=np.float32) + 0.5) * CELL_M - HALF_M).astype(np.float32)
EAST, NORTH = _CENTRES[None, :], -_CENTRES[:, None]


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
        across = north * cos - east * sin
        return along, across - np.float32(self.offset) - np.float32(self.bend / 2) * along * along

    def point(self, along: float, left: float) -> tuple[float, float, float]:
        """Return x, y of a point beside the street and the street's direction there, radians."""
        across = left + self.offset + self.bend / 2 * along**2
        cos, sin = float(np.cos(self.angle)), float(np.sin(self.angle))
        x, y = along * cos - across * sin, along * sin + across * cos
        return x, y, self.angle + float(np.arctan(self.bend * along))


def pave(terrain: Terrain, streets: list[Street]) -> None:
    """Paint streets, their sidewalks, crossings and lines; they are taken for building."""
    placed = [(street, *street.coordinates(EAST, NORTH)) for street in streets]
    carriageways = []
    for street, along, left in placed:
        beside = np.abs(left)
        exists = along >= street.begin
        carriageways.append((beside < street.half_width) & exists)
        walk = (beside < street.half_width + street.sidewalk) & exists
        terrain.taken |= walk
        terrain.tone[walk] = 1.0 + 0.04 * terrain.grain[walk]
        if street.sidewalk > 0:
            terrain.material[walk] = Material.PAVEMENT
    for (street, _, _), carriageway in zip(placed, carriageways, strict=True):
        terrain.material[carriageway] = street.surface
    for number, (street, along, left) in enumerate(placed):
        others = np.zeros_like(terrain.taken)
        for other_number, other in enumerate(carriageways):
            if other_number != number:
                others |= other
        _paint_lines(terrain, street, along, left, carriageways[number] & ~others)
        if street.crossings:
            for other_number, (other_street, _, other_left) in enumerate(placed):
                if other_number != number and other_street.sidewalk > 0:
                    gap = np.abs(other_left) - np.float32(other_street.half_width)
                    zebra = (gap > 0.8) & (gap < 3.4) & (np.mod(left, 1.2) < 0.6)
                    terrain.material[zebra & carriageways[number] & ~others] = Material.WHITE_LINE


def _paint_lines(
    terrain: Terrain,
    street: Street,
    along: Floats,
    left: Floats,
    where: np.ndarray,
) -> None:
    """Paint the centre line (white ones are dashed) and the edge lines."""
    beside = np.abs(left)
    if street.centre_line is not None:
        line = (beside < 0.16) & where
        if street.centre_line == Material.WHITE_LINE:
            line &= np.mod(along, 6.0) < 3.0
        terrain.material[line] = street.centre_line
    if street.edge_lines:
        edge = np.abs(beside - np.float32(street.half_width - 0.35)) < 0.13
        terrain.material[edge & where] = Material.WHITE_LINE


def flood(terrain: Terrain, river: Street) -> None:
    """Paint a river with banks; nothing is built in it."""
    _, left = river.coordinates(EAST, NORTH)
    beside = np.abs(left)
    terrain.material[beside < river.half_width + 1.5] = Material.SOIL
    water = beside < river.half_width
    terrain.material[water] = Material.WATER
    terrain.tone[water] = 1.0
    terrain.taken |= beside < river.half_width + 1.5
