"""CVUSA: north-aligned street-view panoramas and zoom-19 aerial tiles over the United States."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_shards.base.errors import InputError
from data_shards.base.text import NULLS, number, read_rows
from data_shards.format.classes import CVUSA_TO_CLASS
from data_shards.format.images import decode_class_map, encode_png
from data_shards.format.sample import JSON, Meta, RejectedSample, Sample
from data_shards.sources.exclusions import read_exclusions
from data_shards.sources.source import SplitPlan, file_hash, read_inside

LISTS = {"train": "splits/train-19zl.csv", "val": "splits/val-19zl.csv"}
LOCATIONS = "split_locations/all.csv"
LOCATION_LIMITS = {"latitude": 90, "longitude": 180}
"""Its first columns, degrees."""

ELEVATION_DEG = (-32.75, 32.75)
TILE_PIXELS = 750
METRES_PER_PIXEL_AT_EQUATOR = 0.2986  # zoom 19
EXTENT_WITHOUT_LATITUDE_M = 172.0


class _Row(NamedTuple):
    """Paths relative to the root, as the lists have them."""

    aerial: str
    ground: str
    label: str | None


class CvusaSource:
    """The distributed CVUSA; annotations and `split_locations` are used where present.

    Args:
        root: folder with `splits`, `bingmap` and `streetview`.
        exclude: a text file of image ids or paths (`exclusions.read_exclusions`) that are left
            out of both splits (known duplicates).

    Raises:
        InputError: a list is missing or malformed, or an exclusion matches nothing.
    """

    name = "cvusa"

    def __init__(self, root: str | Path, exclude: str | Path | None = None) -> None:
        self._root = Path(root)
        listed = {split: _read_list(self._root / path) for split, path in LISTS.items()}
        known = (_image_id(row.aerial) for rows in listed.values() for row in rows)
        excluded = read_exclusions(exclude, known, _image_id)
        self._rows = {
            split: [row for row in rows if _image_id(row.aerial) not in excluded.names]
            for split, rows in listed.items()
        }
        self._locations = _read_locations(self._root / LOCATIONS)
        files = [self._root / path for path in [*LISTS.values(), LOCATIONS]]
        self._options: dict[str, JSON] = {f"{p.name}_sha256": file_hash(p) for p in files}
        self._options["exclude_sha256"] = excluded.sha256

    @property
    def splits(self) -> Mapping[str, SplitPlan]:
        """`train` and `val`, without the excluded rows."""
        return {split: SplitPlan("pairs", len(rows)) for split, rows in self._rows.items()}

    def options(self) -> dict[str, JSON]:
        """Hashes of the lists that choose the samples."""
        return self._options

    def sample(self, split: str, row: int) -> Sample:
        """The pair of a row, with its class map where there is an annotation.

        Raises:
            RejectedSample: an image is missing, or the annotation can't be used.
        """
        paths = self._rows[split][row]
        parts = {
            "aerial.jpg": read_inside(self._root, paths.aerial),
            "ground.jpg": read_inside(self._root, paths.ground),
        }
        if paths.label is not None:
            annotation = _read_annotation(self._root, paths.label)
            if annotation is not None:
                parts["seg.png"] = annotation
        lat, lon = self._position(_image_id(paths.aerial))
        meta = Meta(
            source_id=Path(paths.aerial).stem,
            lat=lat,
            lon=lon,
            heading=0.0,
            extent_m=extent_m(lat),
            elevation=ELEVATION_DEG,
        )
        return Sample(meta, parts)

    def _position(self, image_id: str) -> tuple[float, float] | tuple[None, None]:
        """Row n of `split_locations`, counted from 1, is image id n."""
        row = int(image_id) - 1 if image_id.isdecimal() else -1
        if not 0 <= row < len(self._locations):
            return None, None
        lat, lon = self._locations[row].tolist()
        return (None, None) if math.isnan(lat) else (lat, lon)


def extent_m(lat: float | None) -> float:
    """Side of a tile on the ground, metres; `lat` in degrees."""
    if lat is None:
        return EXTENT_WITHOUT_LATITUDE_M
    return TILE_PIXELS * METRES_PER_PIXEL_AT_EQUATOR * math.cos(math.radians(lat))


def _image_id(path: str) -> str:
    """`bingmap/19/0000017.jpg`, `0000017` and `17` are the same image."""
    stem = Path(path).stem
    return stem.lstrip("0") or stem


def _read_list(path: Path) -> list[_Row]:
    rows = []
    hint = "is --root the folder of CVUSA with splits, bingmap and streetview?"
    for line, fields in read_rows(path, hint):
        if len(fields) not in (2, 3):
            raise InputError(
                f"{path} line {line} has {len(fields)} fields; "
                "CVUSA's lists have aerial,ground,label."
            )
        aerial, ground, label = (*(field.replace("\\", "/") for field in fields), "")[:3]
        rows.append(_Row(aerial, ground, None if label.lower() in NULLS else label))
    return rows


def _read_locations(path: Path) -> np.ndarray:
    """float64 [N, 2]: latitude and longitude by row, NaN where a cell has a missing value; none
    where the user doesn't have the file."""
    if not path.exists():
        return np.empty((0, 2))
    rows = [_location(path, line, fields) for line, fields in read_rows(path)]
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def _location(path: Path, line: int, fields: Sequence[str]) -> tuple[float, float]:
    if len(fields) < len(LOCATION_LIMITS):
        raise InputError(f"{path} line {line} has no latitude and longitude.")
    values = []
    for (name, limit), cell in zip(LOCATION_LIMITS.items(), fields, strict=False):
        try:
            value = number(cell)
        except ValueError as error:
            raise InputError(f"{path} line {line}: {name} {error}") from None
        if value is not None and abs(value) > limit:
            raise InputError(
                f"{path} line {line}: {name} is {cell}, outside -{limit} to {limit} degrees."
            )
        values.append(math.nan if value is None else value)
    lat, lon = values
    return (math.nan, math.nan) if math.isnan(lat + lon) else (lat, lon)


def _read_annotation(root: Path, relative: str) -> bytes | None:
    """Return a class map in our ids; None if the file is missing, as in most copies."""
    try:
        data = read_inside(root, relative)
    except RejectedSample as rejection:
        if rejection.reason == "missing_file":
            return None
        raise
    image = decode_class_map(str(root / relative), data)
    occurring = np.flatnonzero(image.histogram())
    if (CVUSA_TO_CLASS[occurring] == occurring).all():
        return data
    return encode_png(Image.fromarray(CVUSA_TO_CLASS[np.asarray(image)]))
