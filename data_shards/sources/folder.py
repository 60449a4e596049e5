"""A folder of your own pairs: one CSV or parquet table a split, with the image files next to it."""

import sys
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from data_shards.base.errors import InputError
from data_shards.format.image_header import PNG_SIGNATURE
from data_shards.format.sample import JSON, Kind, Meta, RejectedSample, Sample
from data_shards.sources.source import SplitPlan, read_inside
from data_shards.sources.tables import find_tables, read_table

COLUMNS = {
    "ground": pa.string(),
    "aerial": pa.string(),
    "label": pa.string(),
    "lat": pa.float64(),
    "lon": pa.float64(),
    "heading": pa.float64(),
    "extent": pa.float64(),
}
LIMITS = {
    "lat": (-90.0, 90.0),
    "lon": (-180.0, 180.0),
    "extent": (0.001, sys.float_info.max),
    "heading": (-360.0, 360.0),
}


class FolderSource:
    """Every `<split>.csv` or `<split>.parquet` in a folder is a split.

    Columns: `ground`, `aerial`, `label` (a class map in our ids): paths relative to the folder;
    `lat`, `lon`, `heading` (of the panorama's centre, clockwise from north): degrees; `extent`:
    the tile's side, metres. Without `ground` the split is a gallery, without `aerial`
    it is queries. A missing value is unknown. `tables.read_table` says what else tables may have.

    Args:
        root: the folder.

    Raises:
        InputError: no table, a table that can't be read, or a column that is not known.
    """

    name = "folder"

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root)
        files = find_tables(self._root)
        self._tables = {split: read_table(path, COLUMNS) for split, path in files.items()}
        for table in self._tables.values():
            _check_columns(table.path, table.data.column_names)
        self._options: dict[str, JSON] = {
            f"{table.path.name}_sha256": table.sha256 for table in self._tables.values()
        }

    @property
    def splits(self) -> Mapping[str, SplitPlan]:
        """One split a table."""
        return {
            split: SplitPlan(_kind(table.data), table.data.num_rows)
            for split, table in self._tables.items()
        }

    def options(self) -> dict[str, JSON]:
        """Hashes of the tables."""
        return self._options

    def sample(self, split: str, row: int) -> Sample:
        """The sample of a table row.

        Raises:
            RejectedSample: a file is missing or outside the folder, or a number out of range.
        """
        table = self._tables[split]
        cells = {name: table.data[name][row].as_py() for name in table.data.column_names}
        for name, (least, most) in LIMITS.items():
            value = cells.get(name)
            if value is not None and not least <= value <= most:
                raise RejectedSample("bad_value", f"{table.where(row)}: {name} is {value}.")
        parts = {}
        for view in ("ground", "aerial"):
            if view not in cells:
                continue
            if not cells[view]:
                raise RejectedSample("missing_value", f"{table.where(row)}: {view} is empty.")
            data = read_inside(self._root, cells[view])
            parts[f"{view}.png" if data.startswith(PNG_SIGNATURE) else f"{view}.jpg"] = data
        if cells.get("label"):
            parts["seg.png"] = read_inside(self._root, cells["label"])
        meta = Meta(
            source_id=cells.get("ground") or cells["aerial"],
            lat=cells.get("lat"),
            lon=cells.get("lon"),
            heading=cells.get("heading"),
            extent_m=cells.get("extent"),
        )
        return Sample(meta, parts)


def _kind(table: pa.Table) -> Kind:
    if "ground" not in table.column_names:
        return "aerial"
    return "pairs" if "aerial" in table.column_names else "ground"


def _check_columns(path: Path, names: list[str]) -> None:
    if not {"ground", "aerial"} & set(names):
        raise InputError(f"{path} has neither a column 'ground' nor a column 'aerial'.")
    if "label" in names and "ground" not in names:
        raise InputError(f"{path} has a column 'label' without 'ground': labels are of panoramas.")
