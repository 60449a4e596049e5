"""The gap between two views of one place: when, in what light and with what sensor they are taken.

The aerial and the ground picture are never taken together. A difficulty says how far apart their
seasons, lights and sensors may be, how many cars have come and gone in between, and how wrong the
panorama's position and heading are.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageFilter

from data_shards.world.shading import Light
from data_shards.world.terrain import Bytes, Floats

Difficulty = Literal["easy", "normal", "hard"]
DIFFICULTIES: tuple[str, ...] = get_args(Difficulty)

# Summer, spring, autumn, late autumn, drought: what they do to the colour of leaves.
_SEASONS = np.array(
    [[1.0, 1.0, 1.0], [1.1, 1.2, 0.9], [1.7, 1.05, 0.6], [1.45, 1.0, 0.9], [1.35, 1.1, 0.8]],
    np.float32,
)


@dataclass(frozen=True, slots=True)
class Gap:
    """Differences between the two views (standard deviations, unless noted)."""

    season: float
    """0 to 1: how far each view's season may stray from summer."""
    light: float
    """0 to 1: how freely the sun moves and hides between the views."""
    colour: float
    """White balance and exposure, in natural logarithms."""
    noise: float
    """Sensor noise as a share of full scale."""
    moved: float
    """Share of the cars that have come or gone."""
    offset_m: float
    heading_deg: float


GAPS: dict[str, Gap] = {
    "easy": Gap(0.1, 0.2, 0.03, 0.005, 0.2, 0.1, 0.0),
    "normal": Gap(0.2, 0.3, 0.04, 0.01, 0.3, 0.2, 0.4),
    "hard": Gap(1.0, 1.0, 0.12, 0.03, 1.0, 1.5, 4.0),
}


@dataclass(frozen=True, slots=True)
class Sensor:
    """Photometric effects of a camera."""

    gain: Floats  # [3] white balance and exposure
    gamma: float
    noise: float
    blur_px: float


@dataclass(frozen=True, slots=True)
class Appearance:
    """Everything that one pair's two views do not share."""

    aerial_light: Light
    ground_light: Light
    aerial_sensor: Sensor
    ground_sensor: Sensor
    moved: float
    offset_m: tuple[float, float]
    heading_deg: float


def draw(difficulty: Difficulty, rng: np.random.Generator) -> Appearance:
    """Return the appearance of one pair."""
    gap = GAPS[difficulty]
    noon = rng.uniform(0.6, 1.0)
    sun_rad = rng.uniform(0.5 * np.pi, 1.5 * np.pi)
    return Appearance(
        aerial_light=_light(gap, sun_rad, noon, 0.0, rng),
        ground_light=_light(gap, sun_rad, noon, 0.004, rng),
        aerial_sensor=_sensor(gap, rng),
        ground_sensor=_sensor(gap, rng),
        moved=gap.moved,
        offset_m=(float(rng.normal(0.0, gap.offset_m)), float(rng.normal(0.0, gap.offset_m))),
        heading_deg=float(rng.normal(0.0, gap.heading_deg)),
    )


def _light(gap: Gap, sun_rad: float, noon: float, haze: float, rng: np.random.Generator) -> Light:
    """Return one view's light: the pair's own sun, strayed as far as the gap allows."""
    season = _SEASONS[rng.integers(len(_SEASONS))]
    share = gap.season * rng.uniform()
    overcast = gap.light * rng.uniform() ** 2
    return Light(
        sun_azimuth_rad=float(sun_rad + gap.light * rng.uniform(-1.2, 1.2)),
        sun_elevation_rad=float(np.clip(noon - gap.light * rng.uniform(0, 0.4), 0.4, 1.2)),
        sun_share=float(1.0 - overcast),
        haze_per_m=float(haze * (0.5 + gap.light * rng.exponential())),
        leaf_gain=1.0 + np.float32(share) * (season - 1.0),
        dryness=float(gap.season * rng.uniform() ** 2),
    )


def _sensor(gap: Gap, rng: np.random.Generator) -> Sensor:
    """Return one camera's colours and noise."""
    balance = rng.normal(0.0, gap.colour, 3) + rng.normal(0.0, gap.colour)
    return Sensor(
        gain=np.exp(balance).astype(np.float32),
        gamma=float(np.exp(rng.normal(0.0, gap.colour))),
        noise=float(gap.noise * rng.uniform(0.5, 1.5)),
        blur_px=float(rng.uniform(0.0, 0.6)),
    )


def expose(picture: Floats, sensor: Sensor, rng: np.random.Generator) -> Bytes:
    """Return what the camera records of a picture [H, W, 3] in 0..1: uint8 of the same shape."""
    exposed = np.clip(picture * sensor.gain, 0.0, 1.0) ** np.float32(sensor.gamma)
    exposed += np.float32(sensor.noise) * rng.standard_normal(picture.shape, dtype=np.float32)
    image = Image.fromarray((np.clip(exposed, 0.0, 1.0) * 255).astype(np.uint8))
    if sensor.blur_px > 0.2:
        image = image.filter(ImageFilter.GaussianBlur(sensor.blur_px))
    return np.asarray(image)
