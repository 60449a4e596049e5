"""CVUSA: north-aligned street-view panoramas and zoom-19 aerial tiles over the United States."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_shards.classes import CVUSA_TO_CLASS
from data_shards.errors import InputError
from data_shards.images import decode, encode_png
from data_shards.sample import Meta, RejectedSample, Sample
from data_shards.sources.source import JSON, SplitPlan, file_hash, read_exclusions, read_inside

LISTS = {"train": "splits/train-19zl.csv", "val": "splits/val-19zl.csv"}
LOCATIONS = "split_locations/all.csv"

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
    """CVUSA as it is distributed; annotations and `split_locations` are used where they are.

    Args:
        root: folder with `splits`, `bingmap` and `streetview`.
        exclude: a text file of image ids or paths, one a line, that are left out of both splits
            (known duplicates).

    Raises:
        InputError: a list is missing or malformed.
    """

    name = "cvusa"

    def __init__(self, root: str | Path, exclude: str | Path | None = None) -> None:
        self._root = Path(root)
        excluded = {_image_id(line) for line in read_exclusions(exclude)}
        self._rows = {
            split: [r for r in _read_list(self._root / path) if _image_id(r.aerial) not in excluded]
            for split, path in LISTS.items()
        }
        self._locations = _read_locations(self._root / LOCATIONS)
        files = [self._root / path for path in [*LISTS.values(), LOCATIONS]]
        self._options: dict[str, JSON] = {f"{p.name}_sha256": file_hash(p) for p in files}
        self._options["exclude_sha256"] = file_hash(exclude)

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
        return lat, lon


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
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for number, fields in enumerate(csv.reader(file), start=1):
                if len(fields) not in (2, 3):
                    raise InputError(
                        f"{path} line {number} has {len(fields)} fields; "
                        "CVUSA's lists have aerial,ground,label."
                    )
                label = fields[2] if len(fields) == 3 and fields[2] else None
                rows.append(_Row(fields[0], fields[1], label))
    except OSError as error:
        raise InputError(
            f"{path} can't be read ({error.strerror}): is --root the folder of CVUSA with "
            "splits, bingmap and streetview?"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV list: {error}.") from None
    return rows


def _read_locations(path: Path) -> np.ndarray:
    """float64 [N, 2]: latitude and longitude by row; none where the user doesn't have the file."""
    if not path.exists():
        return np.empty((0, 2))
    try:
        locations = np.loadtxt(path, delimiter=",", usecols=(0, 1), ndmin=2)
    except (ValueError, OSError) as error:
        raise InputError(f"{path} can't be read: {error}.") from None
    wrong = np.flatnonzero(~(np.abs(locations) <= (90, 180)).all(axis=1))
    if wrong.size:
        raise InputError(f"{path} line {wrong[0] + 1} is not a latitude and a longitude.")
    return locations


def _read_annotation(root: Path, relative: str) -> bytes | None:
    """A class map in our ids; None where there is no file, as in most copies."""
    try:
        data = read_inside(root, relative)
    except RejectedSample as rejection:
        if rejection.reason == "missing_file":
            return None
        raise
    image = decode(str(root / relative), data)
    if image.mode != "L":
        raise RejectedSample(
            "bad_class_map", f"{root / relative} has colour mode {image.mode}, not 8-bit grey."
        )
    occurring = np.flatnonzero(image.histogram())
    if (CVUSA_TO_CLASS[occurring] == occurring).all():
        return data
    return encode_png(Image.fromarray(CVUSA_TO_CLASS[np.asarray(image)]))
