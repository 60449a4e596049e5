"""VIGOR: panoramas of four American cities and a seamless cover of zoom-20 aerial tiles."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from data_shards.base.errors import InputError
from data_shards.base.text import lines_of, read_text
from data_shards.format.sample import JSON, Meta, RejectedSample, Sample
from data_shards.sources.exclusions import read_exclusions
from data_shards.sources.source import SplitPlan, file_hash, read_inside

Area: TypeAlias = Literal["same", "cross"]

CITIES = ("Chicago", "NewYork", "SanFrancisco", "Seattle")
TRAIN_CITIES: dict[Area, tuple[str, ...]] = {"same": CITIES, "cross": ("NewYork", "Seattle")}
TEST_CITIES: dict[Area, tuple[str, ...]] = {"same": CITIES, "cross": ("Chicago", "SanFrancisco")}
TRAIN_LISTS: dict[Area, str] = {"same": "same_area_balanced_train", "cross": "pano_label_balanced"}
TEST_LISTS: dict[Area, str] = {"same": "same_area_balanced_test", "cross": "pano_label_balanced"}
TILE_LIST = "satellite_list"

PANORAMA = re.compile(r".+,(-?\d+\.?\d*),(-?\d+\.?\d*),\.jpg")
TILE = re.compile(r"satellite_(-?\d+\.?\d*)_(-?\d+\.?\d*)\.png")
FIELDS = 13
"""Fields of a line: a panorama, then four times a tile and its offset from the panorama in pixels:
rows, columns. Offsets follow from the coordinates in the names, so they are not kept."""
TILE_FIELDS = (1, 4, 7, 10)

ELEVATION_DEG = (-90.0, 90.0)
TILE_PIXELS = 640
METRES_PER_PIXEL_AT_EQUATOR = 0.14929  # zoom 20


class Label(NamedTuple):
    """A line of a panorama list: file names; the positive tile comes first, then three others."""

    panorama: str
    tiles: tuple[str, ...]


class _Panorama(NamedTuple):
    """A panorama and the tiles that show its place, by their number in the gallery."""

    city: str
    name: str
    tiles: tuple[int | None, ...]


class VigorSource:
    """The distributed VIGOR; the corrected lists of `splits__corrected` are used where present.

    `train` are pairs of a panorama and its positive tile, `test` is queries, `aerial` is the
    gallery: every tile of the four cities once, in the order of the lists.

    Args:
        root: folder with `splits` or `splits__corrected` and a folder for each city.
        area: `same` trains and tests in every city; `cross` trains in New York and Seattle and
            tests in Chicago and San Francisco.
        exclude: a text file of file names (`exclusions.read_exclusions`) that are left out (known
            duplicates). With a tile go the panoramas whose positive it is.

    Raises:
        InputError: a list is missing or malformed, or an exclusion matches nothing.
    """

    name = "vigor"

    def __init__(
        self, root: str | Path, area: Area = "same", exclude: str | Path | None = None
    ) -> None:
        self._root = Path(root)
        self._options: dict[str, JSON] = {"area": area}
        tiles = [
            (city, name) for city in CITIES for name in read_tiles(self._list(city, TILE_LIST))
        ]
        labels = {
            split: [
                (city, label)
                for city in cities
                for label in read_labels(self._list(city, list_name))
            ]
            for split, cities, list_name in (
                ("train", TRAIN_CITIES[area], TRAIN_LISTS[area]),
                ("test", TEST_CITIES[area], TEST_LISTS[area]),
            )
        }
        panoramas = (label.panorama for listed in labels.values() for _, label in listed)
        excluded = read_exclusions(exclude, [*(name for _, name in tiles), *panoramas], str)
        self._options["exclude_sha256"] = excluded.sha256
        self._tiles = [(city, name) for city, name in tiles if name not in excluded.names]
        numbers = {tile: number for number, tile in enumerate(self._tiles)}
        self._panoramas = {
            split: [
                _Panorama(city, label.panorama, tuple(numbers.get((city, t)) for t in label.tiles))
                for city, label in listed
                if not excluded.names & {label.panorama, label.tiles[0]}
            ]
            for split, listed in labels.items()
        }

    @property
    def splits(self) -> Mapping[str, SplitPlan]:
        """`train`, `test` and `aerial`, without what is excluded."""
        return {
            "train": SplitPlan("pairs", len(self._panoramas["train"])),
            "test": SplitPlan("ground", len(self._panoramas["test"])),
            "aerial": SplitPlan("aerial", len(self._tiles)),
        }

    def options(self) -> dict[str, JSON]:
        """The area, and hashes of the lists that choose the samples."""
        return self._options

    def sample(self, split: str, row: int) -> Sample:
        """The pair, the query or the tile of a row; its source id begins with the city.

        Raises:
            RejectedSample: an image is missing, or the positive tile is in no list.
        """
        if split == "aerial":
            return self._tile_sample(*self._tiles[row])
        panorama = self._panoramas[split][row]
        source_id = f"{panorama.city}/{panorama.name}"
        positive, *semi_positives = panorama.tiles
        if positive is None:
            raise RejectedSample(
                "unknown_tile", f"The positive tile of {source_id} is not in the list of tiles."
            )
        tile = self._tile_sample(*self._tiles[positive]) if split == "train" else None
        ground = f"{panorama.city}/panorama/{panorama.name}"
        lat, lon = _position(PANORAMA, panorama.name)
        meta = Meta(
            source_id=source_id,
            lat=lat,
            lon=lon,
            heading=0.0,
            extent_m=tile.meta.extent_m if tile else None,
            elevation=ELEVATION_DEG,
            positive=positive,
            semi_positives=tuple(number for number in semi_positives if number is not None),
        )
        parts = dict(tile.parts) if tile else {}
        return Sample(meta, {"ground.jpg": read_inside(self._root, ground), **parts})

    def _tile_sample(self, city: str, name: str) -> Sample:
        lat, lon = _position(TILE, name)
        meta = Meta(source_id=f"{city}/{name}", lat=lat, lon=lon, extent_m=extent_m(lat))
        data = read_inside(self._root, f"{city}/satellite/{name}")
        return Sample(meta, {"aerial.png": data})

    def _list(self, city: str, name: str) -> Path:
        """The corrected list where there is one; what is taken is hashed into the options."""
        candidates = [
            self._root / folder / city / f"{name}{suffix}.txt"
            for folder in ("splits__corrected", "splits")
            for suffix in ("__corrected", "")
        ]
        path = next((path for path in candidates if path.exists()), candidates[-1])
        self._options[f"{path.relative_to(self._root)}_sha256"] = file_hash(path)
        return path


def extent_m(lat: float) -> float:
    """Side of a tile on the ground, metres; `lat` in degrees."""
    return TILE_PIXELS * METRES_PER_PIXEL_AT_EQUATOR * math.cos(math.radians(lat))


def read_tiles(path: Path) -> list[str]:
    """The file names of a city's tiles.

    Raises:
        InputError: the list is missing or malformed.
    """
    tiles = []
    for number, fields in _read_lines(path):
        if len(fields) != 1 or TILE.fullmatch(fields[0]) is None:
            raise InputError(f"{path} line {number} is not satellite_<lat>_<lon>.png.")
        tiles += fields
    return tiles


def read_labels(path: Path) -> list[Label]:
    """A city's panoramas with their tiles.

    Raises:
        InputError: the list is missing or malformed.
    """
    labels = []
    for number, fields in _read_lines(path):
        if len(fields) != FIELDS or PANORAMA.fullmatch(fields[0]) is None:
            raise InputError(
                f"{path} line {number} is not <id>,<lat>,<lon>,.jpg and four times a tile with "
                "two offsets."
            )
        labels.append(Label(fields[0], tuple(fields[field] for field in TILE_FIELDS)))
    return labels


def _read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """The fields of the lines that are not blank, with the lines' numbers."""
    hint = f"is --root the folder of VIGOR with splits, {', '.join(CITIES)}?"
    return [(line.number, line.text.split()) for line in lines_of(read_text(path, hint))]


def _position(pattern: re.Pattern[str], name: str) -> tuple[float, float]:
    """Degrees north and east, from a file name that matches."""
    match = pattern.fullmatch(name)
    assert match is not None, name
    return float(match[1]), float(match[2])
