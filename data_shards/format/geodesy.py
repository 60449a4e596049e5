"""Positions on the globe: one point however it is written, distances, and a plane around a middle.

The globe is a sphere. Nothing here computes with raw longitudes, which jump at the 180th meridian
and mean nothing at a pole. Positions are latitude and longitude in degrees; NaN is unknown.
"""

import numpy as np
from numpy.typing import NDArray

EARTH_RADIUS_M = 6_371_008.8

Floats = NDArray[np.float64]


def canonical_longitude(lat: Floats, lon: Floats) -> Floats:
    """Return longitudes [n] that are equal where points are: 180 for -180, 0 at a pole."""
    canonical: Floats = np.where(np.abs(lat) == 90, 0 * lon, np.where(lon == -180, 180, lon))
    return canonical


def directions(positions: Floats) -> Floats:
    """Return unit vectors [n, 3] from the globe's centre to positions [n, 2].

    Straight distances between them order as great-circle distances.
    """
    lat, lon = np.radians(positions).T
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)


def great_circle_m(one: Floats, other: Floats) -> Floats:
    """Return great-circle distances [n] of positions [n, 2]; NaN where one is unknown."""
    return _arc_m(directions(one) - directions(other))


def on_a_plane(positions: Floats) -> Floats:
    """Return metres east and north of the middle [n, 2] of positions [n, 2].

    The azimuthal equidistant projection: distance and direction from the middle are true, and
    places that are near each other and near the middle are as far apart as on the globe. The
    middle is the mean direction of the known positions.
    """
    known = positions[~np.isnan(positions).any(axis=1)]
    if len(known) == 0:
        return np.full(positions.shape, np.nan)
    middle = directions(known).mean(axis=0)
    length = np.linalg.norm(middle)
    # Positions all around the globe have no mean direction.
    middle = middle / length if length > 1e-6 else directions(known)[0]
    north = _across(middle, np.array([0.0, 0.0, 1.0]))
    if np.linalg.norm(north) < 1e-9:  # the middle is a pole: any direction serves
        north = _across(middle, np.array([1.0, 0.0, 0.0]))
    north = north / np.linalg.norm(north)
    points = directions(positions)
    flat = points @ np.stack([np.cross(north, middle), north], axis=1)
    length_n = np.linalg.norm(flat, axis=1)
    scale = _arc_m(points - middle) / np.where(length_n == 0, 1.0, length_n)
    plane: Floats = flat * scale[:, None]
    return plane


def _across(middle: Floats, axis: Floats) -> Floats:
    """Return the part of an axis that is perpendicular to a unit vector, [3] all."""
    return axis - (axis @ middle) * middle


def _arc_m(chords: Floats) -> Floats:
    """Return the lengths [n] of arcs on the globe, of chords [n, 3] of the unit sphere."""
    half = (np.linalg.norm(chords, axis=1) / 2).clip(0, 1)
    arc: Floats = 2 * EARTH_RADIUS_M * np.arcsin(half)
    return arc
