"""CVACT: north-aligned street-view panoramas and zoom-20 aerial tiles of Canberra."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from data_shards.base.errors import InputError
from data_shards.format.sample import JSON, Meta, RejectedSample, Rows, Sample
from data_shards.sources.exclusions import read_exclusions
from data_shards.sources.source import SplitPlan, file_hash, read_inside

TABLE = "ACT_data.mat"
INDEXES = {
    "train": ("trainSet", "trainInd"),
    "val": ("valSet", "valInd"),
    "test": ("valSetAll", "valInd"),
}
"""Where the table has the rows of a split: structure and field."""

FOLDERS = {
    "train": ("ANU_data_small",),
    "val": ("ANU_data_small",),
    "test": ("ANU_data_test", "ANU_data_small"),
}
"""Folders that may hold the images of a split, in order of preference."""

GROUND = "streetview/{}_grdView.jpg"
AERIAL = "satview_polish/{}_satView_polish.jpg"

PANORAMA_ROWS = Rows(208, 624, height=832)
ELEVATION_DEG = (-45.0, 45.0)
EXTENT_M = 144.0


class CvactSource:
    """The distributed CVACT; `test` is its large test set (CVACT_test).

    A split without rows in the table is left out.

    Args:
        root: folder with `ACT_data.mat`, `ANU_data_small` and, for `test`, `ANU_data_test`. An
            image of `test` that is not in the latter is taken from the former.
        exclude: a text file of panorama ids or file names (`exclusions.read_exclusions`) that are
            left out of every split (known duplicates).

    Raises:
        InputError: the table is missing or is not CVACT's, or an exclusion matches nothing.
    """

    name = "cvact"

    def __init__(self, root: str | Path, exclude: str | Path | None = None) -> None:
        self._root = Path(root)
        self._ids, self._utm, indexes = _read_table(self._root / TABLE)
        known = (self._ids[row] for rows in indexes.values() for row in rows)
        excluded = read_exclusions(exclude, known, _pano_id)
        kept = np.array([pano_id not in excluded.names for pano_id in self._ids])
        self._rows = {split: rows[kept[rows]] for split, rows in indexes.items() if len(rows)}
        self._options: dict[str, JSON] = {
            f"{TABLE}_sha256": file_hash(self._root / TABLE),
            "exclude_sha256": excluded.sha256,
        }

    @property
    def splits(self) -> Mapping[str, SplitPlan]:
        """`train`, `val` and `test` where they have rows, without the excluded ones."""
        return {
            split: SplitPlan("pairs", len(rows), crops=True) for split, rows in self._rows.items()
        }

    def options(self) -> dict[str, JSON]:
        """Hashes of the table and the list that choose the samples."""
        return self._options

    def sample(self, split: str, row: int) -> Sample:
        """The pair of a row.

        Raises:
            RejectedSample: an image is missing, as some are in every copy.
        """
        number = self._rows[split][row]
        pano_id = self._ids[number]
        easting, northing = self._utm[number].tolist()
        parts = {
            "ground.jpg": self._read(split, GROUND.format(pano_id)),
            "aerial.jpg": self._read(split, AERIAL.format(pano_id)),
        }
        meta = Meta(
            source_id=pano_id,
            utm=(easting, northing),
            heading=0.0,
            extent_m=EXTENT_M,
            elevation=ELEVATION_DEG,
        )
        return Sample(meta, parts, crops={"ground": PANORAMA_ROWS})

    def _read(self, split: str, name: str) -> bytes:
        """An image from the first folder that has it; a rejection names the first folder."""
        first, *others = FOLDERS[split]
        try:
            return read_inside(self._root, f"{first}/{name}")
        except RejectedSample as rejection:
            if rejection.reason != "missing_file":
                raise
            for folder in others:
                if (self._root / folder / name).exists():
                    return read_inside(self._root, f"{folder}/{name}")
            raise


def _pano_id(name: str) -> str:
    """`<id>_grdView.jpg`, `<id>_satView_polish.jpg` and `<id>` are the same place."""
    return name.removesuffix("_grdView.jpg").removesuffix("_satView_polish.jpg")


def _read_table(path: Path) -> tuple[list[str], np.ndarray, dict[str, np.ndarray]]:
    """Ids; easting and northing, float64 [N, 2]; rows of `ids` by split, int64, from 0."""
    try:
        with path.open("rb") as file:
            table = loadmat(file, simplify_cells=True)
        # A char matrix pads short ids with blanks.
        ids = [str(pano_id).strip() for pano_id in np.atleast_1d(table["panoIds"])]
        utm = np.atleast_2d(np.asarray(table["utm"], dtype=np.float64))
        indexes = {split: _rows(table[part][field]) for split, (part, field) in INDEXES.items()}
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist: is --root the folder of CVACT with {TABLE} and ANU_data_small?"
        ) from None
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}.") from None
    except Exception as error:  # scipy's reader raises whatever the broken bytes lead it to
        problem = f"no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise InputError(f"{path} is not CVACT's table: {problem}.") from None
    if utm.shape != (len(ids), 2) or not np.isfinite(utm).all():
        raise InputError(f"{path} has {len(ids)} ids, but utm is not an easting and northing each.")
    if not any(map(len, indexes.values())):
        raise InputError(f"{path} has no rows of {', '.join(INDEXES)}.")
    for split, rows in indexes.items():
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(ids):
            raise InputError(f"{path} has rows of {split} outside 1 to {len(ids)}.")
    return ids, utm, indexes


def _rows(ones_based: Any) -> np.ndarray:  # noqa: ANN401  (a scalar or a matrix of MATLAB)
    return np.asarray(ones_based, dtype=np.int64).reshape(-1) - 1
