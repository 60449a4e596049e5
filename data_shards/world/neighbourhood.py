"""Layout of one neighbourhood of a city: fields, streets, houses, trees, parking."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_shards.format.classes import VEGETATION
from data_shards.world.city import City
from data_shards.world.streets import Street, flood, pave
from data_shards.world.terrain import (
    CELL_M,
    CELLS,
    EAST,
    HALF_M,
    NORTH,
    Box,
    Floats,
    Material,
    Terrain,
    footprint,
    put_box,
    put_lamp,
    put_tree,
)

Parking = list[tuple[float, float, float]]
"""Pose of a car: x, y in metres and its direction in radians from east."""

_CLEAR_M = 4.5
"""Minimum distance of objects from the camera."""


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """A place as it always is, and where cars come and go."""

    terrain: Terrain
    parking: Parking


def lay_out(city: City, rng: np.random.Generator) -> Neighbourhood:
    """Return one neighbourhood of a city with a street through its middle."""
    angle_rad = float(rng.uniform(0.0, np.pi))
    kind = rng.random()
    urban = kind < city.urban_share
    rural = kind > 1.0 - city.rural_share
    terrain = _land(angle_rad, rural, rng)
    if rng.random() < 0.15:
        angle, width = rng.uniform(0, np.pi), rng.uniform(3, 9)
        flood(terrain, Street(angle, rng.choice([-1, 1]) * rng.uniform(20, 45), 0.004, width, 0))
    streets = _streets(city, angle_rad, urban, rural, rng)
    pave(terrain, streets)
    for street in streets:
        for side in (-1.0, 1.0):
            _build_along(terrain, city, street, side, urban, rural, rng)
            _line_with_trees(terrain, city, street, side, urban, rng)
    _scatter_trees(terrain, city, urban, rural, rng)
    return Neighbourhood(terrain, _parking(streets, rural, rng))


def smooth_noise(rng: np.random.Generator, knots: int, size: int) -> Floats:
    """Return a smooth random raster [size, size] of about standard deviation 1."""
    coarse = Image.fromarray(rng.standard_normal((knots, knots), dtype=np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)) * np.float32(1.3)


def _land(angle_rad: float, rural: bool, rng: np.random.Generator) -> Terrain:
    """Return bare land: fields in the country, lots in town, a skyline beyond."""
    terrain = Terrain.flat()
    terrain.grain = rng.standard_normal((CELLS, CELLS), dtype=np.float32)
    patches = smooth_noise(rng, 12, CELLS)
    terrain.tone = np.float32(0.05) * terrain.grain
    terrain.tone += np.float32(0.06) * patches + np.float32(1.0)
    lots = Street(angle_rad + rng.normal(0, 0.1), 0, 0, 0, 0)
    along, across = lots.coordinates(EAST, NORTH)
    length, width = (rng.uniform(35, 80), rng.uniform(25, 60)) if rural else (16.0, 22.0)
    lot_along = ((along + np.float32(rng.uniform(99, 199))) / np.float32(length)).astype(np.uint8)
    lot_across = ((across + np.float32(rng.uniform(99, 199))) / np.float32(width)).astype(np.uint8)
    lot = lot_along * np.uint8(7) + lot_across * np.uint8(61)
    country = [Material.MEADOW, Material.SOIL, Material.CROP, Material.STUBBLE, Material.GRASS]
    town = [Material.GRASS, Material.MEADOW] * 2
    town += [Material.GRAVEL, Material.SOIL, Material.PAVEMENT]
    terrain.material = rng.choice(np.array(country if rural else town, np.uint8), 256)[lot]
    terrain.tone *= rng.uniform(0.8, 1.2, 256).astype(np.float32)[lot]
    if rural:
        rows = 1.0 + np.float32(0.16) * np.sin(across * np.float32(2 * np.pi / rng.uniform(1.5, 3)))
        ploughed = (terrain.material == Material.SOIL) | (terrain.material == Material.CROP)
        np.multiply(terrain.tone, rows, out=terrain.tone, where=ploughed)
    else:
        terrain.material[patches > 2.2] = Material.SOIL
    knots = np.abs(rng.standard_normal(24)) * rng.uniform(0.4, 1.6) + 0.7
    turns = np.linspace(0, 24, 720, endpoint=False)
    hills = np.interp(turns, np.arange(25), np.append(knots, knots[0]))
    leafy = 0.25 * np.abs(rng.standard_normal(720))
    terrain.skyline_rad = np.deg2rad(hills + leafy).astype(np.float32)
    return terrain


def _streets(
    city: City, angle_rad: float, urban: bool, rural: bool, rng: np.random.Generator
) -> list[Street]:
    """Return the camera's street first, and then those that meet it."""
    half_width = city.street_half_width_m * (1.5 if urban else 1.0)
    sidewalk = 0.0 if rural else city.sidewalk_m * (1.6 if urban else 1.0)
    line = Material.YELLOW_LINE if city.yellow_centre_line else Material.WHITE_LINE
    bend = 0.0 if urban else rng.normal(0, 0.006)
    lane = rng.choice([-1.0, 1.0]) * rng.uniform(0.2, 0.6) * half_width
    main = Street(
        angle_rad, lane, bend, half_width, sidewalk, -np.inf, Material.ASPHALT, line, rural, urban
    )
    streets = [main]
    first = rng.uniform(-city.block_m, city.block_m) / 2
    places = [first] if rural else [first - city.block_m, first, first + city.block_m]
    for along in places:
        if rng.random() < (0.5 if rural else 0.25):
            continue
        x, y, direction = main.point(along, 0.0)
        angle = direction + rng.choice([-1, 1]) * np.pi / 2 + rng.normal(0, 0.05 if urban else 0.15)
        begin = x * np.cos(angle) + y * np.sin(angle)
        offset = y * np.cos(angle) - x * np.sin(angle)
        track = rural and rng.random() < 0.5
        streets.append(
            Street(
                angle,
                offset,
                0.0,
                2.0 if track else half_width * rng.uniform(0.75, 1.0),
                0.0 if track else sidewalk,
                begin if rng.random() < 0.5 else -np.inf,
                Material.GRAVEL if track else Material.ASPHALT,
                None if track or rng.random() < 0.4 else line,
                False,
                urban,
            )
        )
    return streets


def _build_along(
    terrain: Terrain,
    city: City,
    street: Street,
    side: float,
    urban: bool,
    rural: bool,
    rng: np.random.Generator,
) -> None:
    """Build on the lots of one side of a street."""
    along = max(street.begin, -HALF_M) + rng.uniform(0, 15)
    setback = rng.uniform(0.5, 3.0) if urban else rng.uniform(3.0, 7.0)
    while along < HALF_M:
        half_length = rng.uniform(6.0, 12.0) if urban else rng.uniform(4.0, 7.5)
        half_width = rng.uniform(5.5, 10.0) if urban else rng.uniform(3.5, 5.0)
        along += half_length
        if rng.random() < (0.12 if rural else 0.85):
            near = street.half_width + street.sidewalk + setback + rng.uniform(0, 1.5)
            x, y, angle = street.point(along, side * (near + half_width))
            if _is_free(terrain, x, y, angle, half_length, half_width):
                house = _house(city, x, y, angle, half_length, half_width, urban, rng)
                _put_building(terrain, house, rng)
                if not urban:
                    _drive(terrain, street, along + half_length - 2.0, side, near + 2.0)
        along += half_length + (rng.uniform(0.3, 5.0) if urban else rng.uniform(3.0, 11.0))


def _is_free(
    terrain: Terrain, x: float, y: float, angle: float, half_length: float, half_width: float
) -> bool:
    """Say whether a building fits here, wholly on the raster and away from the camera."""
    reach = float(np.hypot(half_length, half_width))
    if max(abs(x), abs(y)) + reach > HALF_M or np.hypot(x, y) < reach + _CLEAR_M:
        return False
    window, inside, _ = footprint(x, y, angle, half_length + 0.6, half_width + 0.6)
    return not bool(terrain.taken[window][inside].any())


def _house(
    city: City,
    x: float,
    y: float,
    angle: float,
    half_length: float,
    half_width: float,
    urban: bool,
    rng: np.random.Generator,
) -> Box:
    """Return a building of the city's kind for a lot."""
    storeys = max(2.0, np.rint(rng.gamma(4.0, city.storeys / 4.0))) if urban else rng.integers(1, 3)
    gable = rng.random() < city.gable_share * (0.25 if urban else 1.0)
    side = rng.choice(city.walls) * rng.uniform(0.85, 1.08, 3)
    # Who paints a house chooses a roof that goes with it.
    top = 0.35 * rng.choice(city.roofs) + 0.65 * side
    rise = half_width * rng.uniform(0.45, 0.8) if gable else 0.0
    eave = float(storeys) * 3.1 + 0.4
    bay = rng.uniform(2.2, 3.6)
    return Box(x, y, angle, half_length, half_width, eave, side, top, rise, bay)


def _put_building(terrain: Terrain, house: Box, rng: np.random.Generator) -> None:
    """Put a building on the terrain, with a wing or something on its flat roof."""
    put_box(terrain, house)
    window, inside, _ = footprint(
        house.x, house.y, house.angle, house.half_length + 0.6, house.half_width + 0.6
    )
    terrain.taken[window] |= inside
    if house.rise == 0.0:
        shift = rng.uniform(-0.5, 0.5) * house.half_length
        x, y = house.x + shift * np.cos(house.angle), house.y + shift * np.sin(house.angle)
        length, width = rng.uniform(1.0, 2.2, 2)
        eave = house.eave + rng.uniform(1.2, 2.5)
        put_box(
            terrain, Box(x, y, house.angle, length, width, eave, house.top * 0.8, house.top * 1.15)
        )


def _drive(terrain: Terrain, street: Street, along: float, side: float, length: float) -> None:
    """Pave the way from a street to a house."""
    start = street.half_width + street.sidewalk
    x, y, angle = street.point(along, side * (start + length) / 2)
    window, inside, _ = footprint(x, y, angle, 1.4, abs(length - start) / 2 + 0.3)
    bare = inside & (terrain.solid[window] == 0)
    terrain.material[window][bare] = Material.PAVEMENT


def _line_with_trees(
    terrain: Terrain,
    city: City,
    street: Street,
    side: float,
    urban: bool,
    rng: np.random.Generator,
) -> None:
    """Put lamps, street trees and hedges along one side of a street."""
    pace = rng.uniform(9.0, 18.0) / city.tree_density
    planted = rng.random() < 0.5
    reach = street.half_width + (street.sidewalk * 0.7 if urban else street.sidewalk + 1.5)
    along = max(street.begin, -HALF_M) + rng.uniform(0, pace)
    while along < HALF_M:
        x, y, angle = street.point(along, side * reach)
        if planted and rng.random() < 0.8:
            _plant(terrain, city, x, y, 0.8, rng)
        elif not planted and street.sidewalk > 0 and np.hypot(x, y) > _CLEAR_M:
            put_lamp(terrain, x, y)
        if not urban and rng.random() < 0.3:
            x, y, angle = street.point(along, side * (street.half_width + street.sidewalk + 2.6))
            if _is_free(terrain, x, y, angle, 3.5, 0.5):
                leaf = city.leaf * rng.uniform(0.8, 1.1)
                tall = rng.uniform(0.8, 1.5)
                put_box(terrain, Box(x, y, angle, 3.5, 0.5, tall, leaf, leaf, label=VEGETATION))
        along += pace


def _scatter_trees(
    terrain: Terrain, city: City, urban: bool, rural: bool, rng: np.random.Generator
) -> None:
    """Put trees where nothing is built, in groves."""
    groves = smooth_noise(rng, 7, CELLS)
    count = int(city.tree_density * (15 if urban else 60 if rural else 32))
    for x, y in rng.uniform(-HALF_M, HALF_M, (count, 2)):
        cell = int((HALF_M - y) / CELL_M) % CELLS, int((HALF_M + x) / CELL_M) % CELLS
        if not terrain.taken[cell] and groves[cell] > (0.5 if rural else -0.3):
            _plant(terrain, city, x, y, 1.0, rng)


def _plant(
    terrain: Terrain, city: City, x: float, y: float, size: float, rng: np.random.Generator
) -> None:
    """Plant one tree of the city's kinds, unless it would grow over the camera."""
    conifer = bool(rng.random() < city.conifer_share)
    radius = size * float(rng.uniform(1.4, 2.4) if conifer else rng.uniform(1.8, 4.2))
    height = radius * float(rng.uniform(3.0, 4.5) if conifer else rng.uniform(2.0, 2.8))
    leaf = city.leaf * (0.75 if conifer else 1.0) * rng.uniform(0.7, 1.35, 3).astype(np.float32)
    if np.hypot(x, y) > radius + _CLEAR_M:
        put_tree(terrain, x, y, radius, height, conifer, leaf)


def _parking(streets: list[Street], rural: bool, rng: np.random.Generator) -> Parking:
    """Return poses of parked and moving cars, on both sides of the streets."""
    spots: Parking = []
    for street in streets:
        if street.surface != Material.ASPHALT:
            continue
        along = max(street.begin, -HALF_M) + rng.uniform(0, 10)
        while along < HALF_M:
            side = rng.choice([-1.0, 1.0])
            x, y, angle = street.point(along, side * (street.half_width - 1.2))
            if np.hypot(x, y) > _CLEAR_M + 1.0:
                spots.append((x, y, angle + (0.0 if side < 0 else np.pi)))
            along += rng.uniform(25, 60) if rural else rng.uniform(6, 16)
    return spots
