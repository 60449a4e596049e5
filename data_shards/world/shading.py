"""The colours of both views under a given light and season, before the sensor."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_shards.world.camera import Layer, Pose, View
from data_shards.world.city import City
from data_shards.world.neighbourhood import smooth_noise
from data_shards.world.terrain import CELL_M, CELLS, HALF_M, Floats, Material, Terrain

_SHADOW_CELL = 2  # shadows are cast on every second cell
_SHADOW_STEPS = 14
_LONGEST_SHADOW_M = 22.0


@dataclass(frozen=True, slots=True)
class Light:
    """The sun, the air and the season of one view."""

    sun_azimuth_rad: float
    sun_elevation_rad: float
    sun_share: float
    """0 is an overcast day without shadows, 1 a clear one."""
    haze_per_m: float
    leaf_gain: Floats  # [3] on the colour of leaves, half of it on grass
    dryness: float
    """0 to 1: how far grass and crops have turned to straw."""


def palette(city: City, light: Light) -> Floats:
    """Return the colour of each material in this season [M, 3]."""
    straw = np.array([0.62, 0.55, 0.36], np.float32)
    grass_gain = 0.5 + 0.5 * light.leaf_gain
    colours = np.zeros((len(Material), 3), np.float32)
    dry = np.float32(light.dryness)
    colours[Material.GRASS] = (1 - dry * 0.6) * city.grass * grass_gain + dry * 0.6 * straw
    meadow = city.grass * np.array([1.15, 1.05, 1.0], np.float32)
    colours[Material.MEADOW] = (1 - dry) * meadow * grass_gain + dry * straw
    colours[Material.SOIL] = city.soil
    crop = city.leaf * np.array([1.25, 1.3, 1.1], np.float32)
    colours[Material.CROP] = (1 - dry) * crop * grass_gain + dry * straw
    colours[Material.STUBBLE] = 0.4 * city.soil + 0.6 * straw
    colours[Material.WATER] = [0.20, 0.30, 0.36]
    colours[Material.ASPHALT] = city.asphalt
    colours[Material.PAVEMENT] = city.asphalt * 0.5 + np.float32(0.33)
    colours[Material.GRAVEL] = city.soil * 0.5 + np.float32(0.28)
    colours[Material.WHITE_LINE] = 0.86
    colours[Material.YELLOW_LINE] = [0.85, 0.66, 0.22]
    return colours


def sunlit(surface: Floats, light: Light) -> Floats:
    """Return how much light reaches the surface [N, N]: 1 in the sun, less in cast shadows."""
    coarse = surface[::_SHADOW_CELL, ::_SHADOW_CELL]
    cell_m = CELL_M * _SHADOW_CELL
    slope = float(np.tan(light.sun_elevation_rad))
    reach_m = min(_LONGEST_SHADOW_M, float(surface.max()) / slope)
    shade = np.zeros_like(coarse)
    for distance in np.linspace(reach_m / _SHADOW_STEPS, reach_m, _SHADOW_STEPS):
        down = -int(np.rint(np.cos(light.sun_azimuth_rad) * distance / cell_m))
        right = int(np.rint(np.sin(light.sun_azimuth_rad) * distance / cell_m))
        rows, source_rows = _overlap(down, len(coarse))
        columns, source_columns = _overlap(right, len(coarse))
        towards_sun = coarse[source_rows, source_columns] - np.float32(distance * slope)
        np.maximum(shade[rows, columns], towards_sun, out=shade[rows, columns])
    dark = np.clip((shade - coarse) * np.float32(2.0), 0.0, 1.0)
    lit = 1.0 - np.float32(0.55 * light.sun_share) * dark
    fine: Floats = lit.repeat(_SHADOW_CELL, 0).repeat(_SHADOW_CELL, 1)
    return fine


def _overlap(shift: int, size: int) -> tuple[slice, slice]:
    """Return (where, from where) so that where + shift = from where, inside 0..size."""
    return slice(max(-shift, 0), size - max(shift, 0)), slice(max(shift, 0), size + min(shift, 0))


def paint_aerial(terrain: Terrain, city: City, light: Light, extent_m: float, size: int) -> Floats:
    """Return the orthographic picture of the middle `extent_m` metres [size, size, 3] in 0..1."""
    margin = round((CELLS - extent_m / CELL_M) / 2)
    tile = (slice(margin, CELLS - margin),) * 2
    surface = terrain.surface()
    shade = sunlit(surface, light)[tile]
    surface, solid, grain = surface[tile], terrain.solid[tile], terrain.grain[tile]
    leafy = terrain.crown_top[tile] > terrain.height[tile]
    # One table of colours: the materials, then the solids, then the crowns.
    grounds, tops = palette(city, light), terrain.solid_table()["top"]
    leaves = terrain.crown_table()["colour"] * light.leaf_gain
    kind = terrain.material[tile].astype(np.int16)
    np.copyto(kind, solid + np.int16(len(grounds)), where=solid > 0)
    np.copyto(kind, terrain.crown[tile] + np.int16(len(grounds) + len(tops)), where=leafy)
    tone = np.where(kind < len(grounds), terrain.tone[tile], 1.0 + np.float32(0.05) * grain)
    np.copyto(tone, 1.0 + np.float32(0.16) * grain, where=leafy)
    tone *= shade
    tone *= 1.0 + np.float32(0.32 * light.sun_share) * _relief(surface, light)
    colour = np.concatenate([grounds, tops, leaves]).take(kind, axis=0)
    colour *= (tone * np.float32(255))[:, :, None]
    picture = Image.fromarray(np.minimum(colour, 255, out=colour).astype(np.uint8))
    if size != len(surface):
        picture = picture.resize((size, size), Image.Resampling.BOX)
    return np.asarray(picture, np.float32) / np.float32(255)


def _relief(surface: Floats, light: Light) -> Floats:
    """Return how far slopes face the sun [N, N]: -1 away from it, 0 level, 1 towards it."""
    relief = np.zeros_like(surface)
    # Rows run south: a fall along the rows is a slope that faces south.
    relief[:-1] = np.diff(surface, axis=0) * np.float32(np.cos(light.sun_azimuth_rad) / CELL_M)
    relief[:, :-1] -= np.diff(surface, axis=1) * np.float32(np.sin(light.sun_azimuth_rad) / CELL_M)
    return np.clip(relief, -1.0, 1.0, out=relief)


def paint_ground(
    terrain: Terrain, city: City, light: Light, pose: Pose, view: View, rng: np.random.Generator
) -> Floats:
    """Return the picture of what a ground camera sees [R, C, 3] in 0..1."""
    horizon = np.array([0.80, 0.85, 0.90], np.float32)
    picture = _sky(light, horizon, view, rng)
    east, north = np.sin(view.azimuth), np.cos(view.azimuth)
    for layer, paint in (
        (Layer.GROUND, _ground_colour),
        (Layer.SOLID, _solid_colour),
        (Layer.CROWN, _crown_colour),
    ):
        row, column = np.nonzero(view.layer == layer)
        distance = view.distance[row, column]
        near = np.minimum(distance, np.float32(HALF_M))
        x = np.float32(pose.x) + near * east[column]
        y = np.float32(pose.y) + near * north[column]
        points = _Points(x, y, view.z[row, column], view.cell[row, column], distance)
        colour = paint(terrain, city, light, points)
        clear = np.exp(-np.float32(light.haze_per_m) * np.minimum(distance, 400.0))[:, None]
        picture[row, column] = colour * clear + horizon * (1.0 - clear)
    return picture


@dataclass(frozen=True, slots=True)
class _Points:
    """Points that rays end at, [P] each, metres; cell is the flat raster index."""

    x: Floats
    y: Floats
    z: Floats
    cell: np.ndarray
    distance: Floats


def _sky(light: Light, horizon: Floats, view: View, rng: np.random.Generator) -> Floats:
    """Return a sky with clouds and the sun's glow over the whole picture, and the skyline in it."""
    rows, columns = view.layer.shape
    zenith = np.array([0.30, 0.50, 0.78], np.float32)
    grey = np.array([0.72, 0.75, 0.79], np.float32)
    up = np.clip(view.elevation / np.float32(0.6), 0.0, 1.0)[:, None, None] ** np.float32(0.7)
    blue = horizon + (zenith - horizon) * up
    blue = grey + (blue - grey) * np.float32(0.25 + 0.75 * light.sun_share)
    turn = np.cos(view.azimuth - np.float32(light.sun_azimuth_rad))
    rise = view.elevation - np.float32(light.sun_elevation_rad)
    glow = np.exp(-(rise[:, None] ** 2) * 3.0 - (1.0 - turn[None, :]) * 4.0)
    noise = smooth_noise(rng, 9, 128) + 0.5 * smooth_noise(rng, 33, 128)
    clouds = Image.fromarray(noise).resize((columns, rows), Image.Resampling.BILINEAR)
    cover = np.clip(np.asarray(clouds) - np.float32(rng.uniform(-0.2, 1.5)), 0.0, 1.0)
    # Clouds fade towards the picture's sides, which are one place in the sky.
    cover *= np.sin(np.linspace(0.02, np.pi - 0.02, columns, dtype=np.float32)) ** 0.5
    white = np.float32(0.93) - blue
    sky: Floats = blue + white * np.minimum(0.75 * cover, 1.0)[:, :, None]
    sky += (np.float32(0.35 * light.sun_share) * glow)[:, :, None]
    beyond = view.layer == Layer.SKYLINE
    sky[beyond] = horizon * 0.55 + np.array([0.16, 0.22, 0.15], np.float32)
    return sky


def _ground_colour(terrain: Terrain, city: City, light: Light, points: _Points) -> Floats:
    """Return the colour of ground points [P, 3], blended between the four nearest cells."""
    colours = palette(city, light)
    shade = sunlit(terrain.surface(), light)
    column = np.clip((points.x + HALF_M) / CELL_M - 0.5, 0, CELLS - 1.001)
    row = np.clip((HALF_M - points.y) / CELL_M - 0.5, 0, CELLS - 1.001)
    left, top = column.astype(np.int32), row.astype(np.int32)
    right_share, low_share = column - left, row - top
    total = np.zeros((len(points.x), 3), np.float32)
    material, tone = terrain.material.ravel(), (terrain.tone * shade).ravel()
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        cell = (top + down) * CELLS + left + right
        weight = (low_share if down else 1 - low_share) * (
            right_share if right else 1 - right_share
        )
        total += colours[material[cell]] * (tone[cell] * weight).astype(np.float32)[:, None]
    water = material[points.cell] == Material.WATER
    mirror = np.exp(-points.distance[water] / 30.0)[:, None]
    total[water] = total[water] * mirror + np.array([0.6, 0.7, 0.8], np.float32) * (1 - mirror)
    return total


def _solid_colour(terrain: Terrain, _: City, light: Light, points: _Points) -> Floats:
    """Return the colour of walls with windows, of roofs, cars, hedges and poles [P, 3]."""
    number = terrain.solid.ravel()[points.cell]
    box = terrain.solid_table()[number]
    cos, sin = np.cos(box["angle"]), np.sin(box["angle"])
    east, north = points.x - box["x"], points.y - box["y"]
    along, across = east * cos + north * sin, north * cos - east * sin
    inset_along, inset_across = (
        np.abs(along) / box["half_length"],
        np.abs(across) / box["half_width"],
    )
    gable_end = inset_along > inset_across
    facing = np.where(
        gable_end,
        np.sign(along) * _towards_sun(box["angle"], light),
        np.sign(across) * _towards_sun(box["angle"] + np.pi / 2, light),
    )
    lit = 0.80 + np.float32(0.28 * light.sun_share) * facing
    roof = (points.z > box["eave"] + 0.05) & ~(gable_end & (inset_along > 0.93) & (box["bay"] > 0))
    colour = np.where(roof[:, None], box["top"], box["side"])
    wall = (box["bay"] > 0) & ~roof
    on_wall = np.where(gable_end, across, along)
    bay = np.where(wall, box["bay"], 1.0)
    sideways, upward = np.mod(on_wall / bay, 1.0), np.mod(points.z - 0.3, 3.1) / 3.1
    window = wall & (np.abs(sideways - 0.5) < 0.25) & (np.abs(upward - 0.55) < 0.24)
    window &= points.z < box["eave"] - 0.4
    bright = np.mod(np.floor(on_wall / bay) * 0.37 + np.floor(points.z / 3.1) * 0.71 + number, 1.0)
    glass = np.array([0.20, 0.25, 0.32], np.float32) * (0.7 + 0.8 * bright)[:, None]
    colour = np.where(window[:, None], glass, colour)
    grain = _texture(terrain, points) * np.where(box["bay"] > 0, np.float32(0.03), np.float32(0.08))
    foot = np.clip(points.z / 0.5, 0.55, 1.0)
    painted: Floats = colour * (lit * foot * (1.0 + grain))[:, None]
    return painted


def _towards_sun(angle: Floats, light: Light) -> Floats:
    """Return the cosine between the direction `angle` (from east) and the sun's azimuth."""
    cosine: Floats = np.cos(angle - np.float32(np.pi / 2 - light.sun_azimuth_rad))
    return cosine


def _crown_colour(terrain: Terrain, _: City, light: Light, points: _Points) -> Floats:
    """Return the colour of leaves [P, 3]: lit from the sun's side and from above."""
    crown = terrain.crown_table()[terrain.crown.ravel()[points.cell]]
    radius = crown["radius"]
    east, north = (points.x - crown["x"]) / radius, (points.y - crown["y"]) / radius
    up = (points.z - crown["middle"]) / radius
    sun_x, sun_y = np.sin(light.sun_azimuth_rad), np.cos(light.sun_azimuth_rad)
    facing = np.clip(0.6 * (east * sun_x + north * sun_y) + 0.6 * up, -1.0, 1.0)
    rough = 1.0 + np.float32(0.17) * _texture(terrain, points)
    bright = (0.78 + np.float32(0.15 + 0.25 * light.sun_share) * facing) * rough
    colour: Floats = crown["colour"] * light.leaf_gain * bright[:, None]
    return colour


def _texture(terrain: Terrain, points: _Points) -> Floats:
    """Return white noise in space [P], standard normal, in grains of a sixth of a metre."""
    x, y, z = ((axis * 6).astype(np.int32) for axis in (points.x, points.y, points.z))
    row, column = (x + 131 * z) % CELLS, (y + 57 * z) % CELLS
    noise: Floats = terrain.grain[row, column]
    return noise
