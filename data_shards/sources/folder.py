"""A folder of anyone's pairs: one CSV or parquet table a split, image files beside it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from data_shards.errors import InputError
from data_shards.sample import Meta, RejectedSample, Sample
from data_shards.sources.source import JSON, Kind, SplitPlan, file_hash, read_inside

COLUMNS = {
    "ground": pa.string(),
    "aerial": pa.string(),
    "label": pa.string(),
    "lat": pa.float64(),
    "lon": pa.float64(),
    "heading": pa.float64(),
    "extent": pa.float64(),
}
LIMITS = {"lat": (-90.0, 90.0), "lon": (-180.0, 180.0), "extent": (0.001, math.inf)}
UNKNOWN = ["", "nan", "NaN"]
PNG_SIGNATURE = b"\x89PNG"


class FolderSource:
    """Every `<split>.csv` or `<split>.parquet` in a folder is a split.

    Columns: `ground`, `aerial`, `label` (a class map in our ids): paths relative to the folder;
    `lat`, `lon`, `heading` (of the panorama's centre, clockwise from north): degrees; `extent`:
    the tile's side, metres. Without `ground` the split is a gallery, without `aerial`
    it is queries. An empty cell or NaN is unknown.

    Args:
        root: the folder.

    Raises:
        InputError: no table, a table that can't be read, or a column that is not known.
    """

    name = "folder"

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root)
        files = _tables(self._root)
        self._tables = {split: _read_table(path) for split, path in files.items()}
        self._options: dict[str, JSON] = {
            f"{path.name}_sha256": file_hash(path) for path in files.values()
        }

    @property
    def splits(self) -> Mapping[str, SplitPlan]:
        """One split a table."""
        return {
            split: SplitPlan(_kind(table), table.num_rows) for split, table in self._tables.items()
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
        cells = {name: _known(table[name][row].as_py()) for name in table.column_names}
        where = f"row {row + 1} of {split}"
        for name, limits in LIMITS.items():
            _check(where, name, cells.get(name), limits)
        _check(where, "heading", cells.get("heading"), (-360.0, 360.0))
        parts = {}
        for view in ("ground", "aerial"):
            if view not in cells:
                continue
            if not cells[view]:
                raise RejectedSample("missing_value", f"The {view} cell of {where} is empty.")
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


def _tables(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise InputError(f"There is no folder {root}.")
    files: dict[str, Path] = {}
    for path in sorted([*root.glob("*.csv"), *root.glob("*.parquet")]):
        if path.stem in files:
            raise InputError(f"{files[path.stem]} and {path} would both be the split {path.stem}.")
        files[path.stem] = path
    if not files:
        raise InputError(f"{root} has no table: put a <split>.csv or <split>.parquet into it.")
    return files


def _read_table(path: Path) -> pa.Table:
    """The table with the types of `COLUMNS`."""
    try:
        if path.suffix == ".csv":
            options = pa_csv.ConvertOptions(
                column_types=COLUMNS, strings_can_be_null=True, null_values=UNKNOWN
            )
            table = pa_csv.read_csv(path, convert_options=options)
        else:
            table = pq.read_table(path, partitioning=None)
        _check_columns(path, table.column_names)
        return table.cast(pa.schema([(name, COLUMNS[name]) for name in table.column_names]))
    except (OSError, pa.ArrowException, ValueError) as error:
        raise InputError(f"{path} can't be read: {str(error).splitlines()[0]}.") from None


def _check_columns(path: Path, names: list[str]) -> None:
    unknown = [name for name in names if name not in COLUMNS]
    if unknown:
        raise InputError(
            f"{path} has a column {unknown[0]!r} that is not known: "
            f"the columns are {', '.join(COLUMNS)}."
        )
    if len(set(names)) < len(names):
        raise InputError(f"{path} has a column twice: {', '.join(names)}.")
    if not {"ground", "aerial"} & set(names):
        raise InputError(f"{path} has neither a column 'ground' nor a column 'aerial'.")
    if "label" in names and "ground" not in names:
        raise InputError(f"{path} has a column 'label' without 'ground': labels are of panoramas.")


def _known(value: Any) -> Any:  # noqa: ANN401  (a cell of any column)
    return None if isinstance(value, float) and math.isnan(value) else value


def _check(where: str, name: str, value: float | None, limits: tuple[float, float]) -> None:
    if value is not None and not limits[0] <= value <= limits[1]:
        raise RejectedSample("bad_value", f"{where} has {name} {value}.")
