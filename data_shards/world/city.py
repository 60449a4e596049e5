"""Properties in which synthetic cities differ: streets, houses, plants and colours."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Colours = npt.NDArray[np.float32]

_WALLS = np.array(
    [
        [0.72, 0.42, 0.33],  # brick
        [0.88, 0.83, 0.72],  # cream plaster
        [0.80, 0.80, 0.80],  # concrete
        [0.62, 0.70, 0.76],  # blue-grey boards
        [0.90, 0.88, 0.86],  # white
        [0.78, 0.66, 0.48],  # sandstone
        [0.50, 0.34, 0.26],  # dark timber
        [0.66, 0.72, 0.60],  # sage
        [0.30, 0.45, 0.66],  # blue boards
        [0.84, 0.66, 0.26],  # ochre
        [0.34, 0.50, 0.34],  # green boards
        [0.62, 0.20, 0.17],  # falun red
    ],
    np.float32,
)
_ROOFS = np.array(
    [
        [0.62, 0.31, 0.24],  # clay tiles
        [0.34, 0.34, 0.37],  # slate
        [0.47, 0.40, 0.35],  # shingle
        [0.66, 0.65, 0.62],  # gravel
        [0.80, 0.80, 0.79],  # membrane
        [0.42, 0.26, 0.22],  # dark tiles
    ],
    np.float32,
)


@dataclass(frozen=True, slots=True)
class City:
    """A city's habits. Angles in degrees, lengths in metres, colours in 0..1."""

    latitude: float
    zone: int
    """UTM zone, on whose central meridian the city is."""
    block_m: float
    street_half_width_m: float
    yellow_centre_line: bool
    sidewalk_m: float
    urban_share: float
    rural_share: float
    storeys: float
    gable_share: float
    conifer_share: float
    tree_density: float
    walls: Colours
    roofs: Colours
    grass: Colours
    soil: Colours
    asphalt: Colours
    leaf: Colours

    @property
    def longitude(self) -> float:
        """The central meridian of the city's UTM zone, in degrees."""
        return 6.0 * self.zone - 183.0


def make_city(seed: int, number: int) -> City:
    """Return city `number` of the world `seed`: a pure function of both."""
    rng = np.random.default_rng([seed, 0xC17, number])
    green = rng.uniform(0.0, 1.0)
    tone = rng.uniform(0.85, 1.1)
    return City(
        latitude=float(rng.uniform(28.0, 58.0)),
        zone=int(1 + (number * 7 + rng.integers(60)) % 60),
        block_m=float(rng.uniform(38.0, 62.0)),
        street_half_width_m=float(rng.uniform(2.6, 3.6)),
        yellow_centre_line=bool(rng.random() < 0.5),
        sidewalk_m=float(rng.uniform(1.0, 1.8)),
        urban_share=float(rng.uniform(0.2, 0.45)),
        rural_share=float(rng.uniform(0.15, 0.3)),
        storeys=float(rng.uniform(3.0, 6.0)),
        gable_share=float(rng.uniform(0.5, 0.95)),
        conifer_share=float(rng.uniform(0.05, 0.5)),
        tree_density=float(rng.uniform(0.7, 1.3)),
        walls=_WALLS[rng.permutation(len(_WALLS))[:8]],
        roofs=_ROOFS[rng.permutation(len(_ROOFS))[:4]],
        grass=_mix([0.36, 0.46, 0.22], [0.55, 0.52, 0.32], green),
        soil=_mix([0.47, 0.36, 0.26], [0.66, 0.53, 0.40], rng.uniform()),
        asphalt=_mix([0.34, 0.34, 0.36], [0.50, 0.49, 0.48], rng.uniform()),
        leaf=_mix([0.20, 0.33, 0.14], [0.34, 0.42, 0.20], green) * np.float32(tone),
    )


def district(city: City, rng: np.random.Generator) -> City:
    """Return one neighbourhood's variety of its city: its own streets, shades and builders."""
    walls = city.walls[rng.permutation(len(city.walls))[:4]]
    roofs = city.roofs[rng.permutation(len(city.roofs))[:2]]
    grass, soil, leaf = (
        colour * np.float32(rng.uniform(0.8, 1.2)) * rng.uniform(0.88, 1.12, 3).astype(np.float32)
        for colour in (city.grass, city.soil, city.leaf)
    )
    return replace(
        city,
        tree_density=city.tree_density * float(rng.uniform(0.4, 1.4)),
        walls=walls,
        roofs=roofs,
        grass=grass,
        soil=soil,
        asphalt=city.asphalt * np.float32(rng.uniform(0.8, 1.2)),
        leaf=leaf,
    )


def _mix(first: list[float], second: list[float], share: float) -> Colours:
    """Return the colour `share` of the way from `first` to `second`."""
    return np.asarray(first, np.float32) * np.float32(1.0 - share) + np.asarray(
        second, np.float32
    ) * np.float32(share)
