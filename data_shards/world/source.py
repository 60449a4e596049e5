"""The synthetic world as a source of pairs, addressed by row."""

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_shards.format.sample import JSON, Meta, Sample
from data_shards.sources.source import SplitPlan
from data_shards.world.appearance import DIFFICULTIES, Appearance, Difficulty, draw, expose
from data_shards.world.camera import ELEVATION_DEG, Pose, View, azimuths, cast, class_map
from data_shards.world.city import City, district, make_city
from data_shards.world.neighbourhood import Neighbourhood, lay_out
from data_shards.world.shading import paint_aerial, paint_ground
from data_shards.world.terrain import Bytes, Floats, Terrain, put_car

EXTENT_M = 96.0
CAMERA_HEIGHT_M = 2.0
CITIES: dict[str, tuple[int, ...]] = {"train": (0, 1, 2, 3), "val": (4,)}
_PLACE_SPACING_M = 250.0
_PAINTS = np.array(
    [
        [0.85, 0.85, 0.86],
        [0.12, 0.12, 0.13],
        [0.55, 0.56, 0.58],
        [0.6, 0.12, 0.1],
        [0.15, 0.25, 0.5],
    ],
    np.float32,
)


@dataclass(frozen=True, slots=True)
class WorldSource:
    """Pairs of the synthetic world: a row is a pure function of the seed and these options.

    Args:
        seed: of the world; another seed is another world.
        train, val: number of pairs of each split; they lie in different cities.
        difficulty: the gap between the views: `easy`, `normal` or `hard`.
        ground_size: height and width of the panoramas, pixels; width is at least twice the height.
        aerial_size: side of the aerial tiles, pixels.

    Raises:
        ValueError: an option is outside its range.
    """

    seed: int
    train: int
    val: int
    difficulty: Difficulty = "normal"
    ground_size: tuple[int, int] = (128, 512)
    aerial_size: int = 256

    def __post_init__(self) -> None:
        height, width = self.ground_size
        if self.difficulty not in DIFFICULTIES:
            choices = ", ".join(DIFFICULTIES)
            raise ValueError(f"difficulty is {self.difficulty!r}; it must be one of {choices}.")
        if height < 8 or width < 2 * height:
            raise ValueError(
                f"ground_size is {height}x{width}; it must be at least 8 rows high and at least"
                " twice as wide as high."
            )
        if self.aerial_size < 16 or min(self.train, self.val, self.seed) < 0:
            raise ValueError(
                "aerial_size must be at least 16; train, val and seed must not be negative."
            )

    @property
    def name(self) -> str:
        """The data set's name."""
        return "world"

    @property
    def splits(self) -> Mapping[str, SplitPlan]:
        """Both splits, of pairs."""
        return {"train": SplitPlan("pairs", self.train), "val": SplitPlan("pairs", self.val)}

    def options(self) -> dict[str, JSON]:
        """Return the options that the samples depend on."""
        return {
            "seed": self.seed,
            "train": self.train,
            "val": self.val,
            "difficulty": self.difficulty,
            "ground_size": list(self.ground_size),
            "aerial_size": self.aerial_size,
        }

    def sample(self, split: str, row: int) -> Sample:
        """Return the pair of a row: both pictures, the panorama's class map, and where it is."""
        number = CITIES[split][row % len(CITIES[split])]
        place = row // len(CITIES[split])
        layout_rng, gap_rng, car_rng, pixel_rng = (
            np.random.default_rng([self.seed, number, place, purpose]) for purpose in range(4)
        )
        city = district(make_city(self.seed, number), layout_rng)
        neighbourhood = lay_out(city, layout_rng)
        appearance = draw(self.difficulty, gap_rng)
        before, after = _traffic(neighbourhood, appearance.moved, car_rng)
        ground, classes = self._ground(after, city, appearance, pixel_rng)
        picture = paint_aerial(before, city, appearance.aerial_light, EXTENT_M, self.aerial_size)
        aerial = expose(picture, appearance.aerial_sensor, pixel_rng)
        return Sample(
            meta=_meta(city, number, place),
            parts={
                "ground.jpg": _jpeg(ground),
                "aerial.jpg": _jpeg(aerial),
                "seg.png": _png(classes),
            },
        )

    def _ground(
        self, terrain: Terrain, city: City, appearance: Appearance, rng: np.random.Generator
    ) -> tuple[Bytes, Bytes]:
        """Return the panorama and its class map.

        The camera casts two rays a pixel each way; the picture is their tent-weighted mean, the
        class is that of the ray through the pixel's centre.
        """
        height, width = self.ground_size
        pose = Pose(*appearance.offset_m, CAMERA_HEIGHT_M, appearance.heading_deg)
        # Ray rows look at the rows' edges (even) and centres (odd).
        elevation = np.deg2rad(np.linspace(*ELEVATION_DEG[::-1], 2 * height + 1)).astype(np.float32)
        fine = cast(terrain, pose, elevation, azimuths(width, pose.heading_deg, 2))
        picture = _tent(paint_ground(terrain, city, appearance.ground_light, pose, fine, rng))
        centres = View(
            fine.layer[1::2, ::2],
            fine.distance[1::2, ::2],
            fine.cell[1::2, ::2],
            fine.z[1::2, ::2],
            fine.azimuth[::2],
            fine.elevation[1::2],
        )
        return expose(picture, appearance.ground_sensor, rng), class_map(terrain, centres)


def _tent(fine: Floats) -> Floats:
    """Return [2H + 1, 2W, C] weighted 1 2 1 around rows 1, 3, ... and columns 0, 2, ...: [H, W, C].

    Columns wrap around the panorama.
    """
    rows = (fine[:-2:2] + 2.0 * fine[1:-1:2] + fine[2::2]) / 4.0
    odd = rows[:, 1::2]
    mixed: Floats = (np.roll(odd, 1, axis=1) + 2.0 * rows[:, ::2] + odd) / 4.0
    return mixed


def _traffic(
    neighbourhood: Neighbourhood, moved: float, rng: np.random.Generator
) -> tuple[Terrain, Terrain]:
    """Return the terrain with its cars when the aerial and when the ground picture is taken."""
    before, after = neighbourhood.terrain.copy(), neighbourhood.terrain.copy()
    for x, y, angle in neighbourhood.parking:
        here = rng.random() < 0.4
        stays = rng.random() >= moved
        here_later = here if stays else rng.random() < 0.4
        paint, later_paint = rng.choice(_PAINTS, 2)
        if here:
            put_car(before, x, y, angle, paint)
        if here_later:
            put_car(after, x, y, angle, paint if stays else later_paint)
    return before, after


def _meta(city: City, number: int, place: int) -> Meta:
    """Return where a place is: on a lattice around the city's middle, on its central meridian."""
    # 100 x 100 places fill the lattice; later ones continue northwards.
    east = (place % 100 - 49.5) * _PLACE_SPACING_M
    north = (place // 100 - 49.5) * _PLACE_SPACING_M
    latitude = city.latitude + north / 111_200.0
    longitude = city.longitude + east / (111_320.0 * np.cos(np.deg2rad(latitude)))
    return Meta(
        source_id=f"city{number}-{place:06d}",
        lat=float(latitude),
        lon=float(longitude),
        utm=(500_000.0 + 0.9996 * east, 0.9996 * _meridian_arc_m(latitude)),
        heading=0.0,
        extent_m=EXTENT_M,
        elevation=ELEVATION_DEG,
    )


def _meridian_arc_m(latitude_deg: float) -> float:
    """Return the distance from the equator along a meridian of the WGS 84 ellipsoid, metres."""
    latitude = np.deg2rad(latitude_deg)
    arc = 111_132.954 * latitude_deg - 16_038.509 * np.sin(2 * latitude)
    return float(arc + 16.833 * np.sin(4 * latitude))


def _jpeg(image: Bytes) -> bytes:
    """Return the image [H, W, 3] as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _png(classes: Bytes) -> bytes:
    """Return the class map [H, W] as 8-bit grey PNG."""
    buffer = io.BytesIO()
    Image.fromarray(classes).save(buffer, "PNG")
    return buffer.getvalue()
