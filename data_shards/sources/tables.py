"""Tables of samples: CSV or parquet, with a header, one row a sample."""

import csv
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from data_shards.base.errors import InputError
from data_shards.base.text import NULLS, NUMBER, not_a_number, read_bytes, to_utf8

SUFFIXES = (".csv", ".parquet")
DELIMITERS = ",;\t"
INDEX_COLUMN = re.compile(r"|unnamed: \d+(_level_\d+)?|__index_level_\d+__")
"""What pandas and R call an index without a name, in lower case."""

BLANK_LINE = re.compile(rb"^ *$", re.MULTILINE)
FINITE_OR_INF = f"^({NUMBER.pattern}|[+-]?(inf|infinity))$"
"""Infinity is a number here: like one out of range it spoils its row, not the table."""


@dataclass(frozen=True)
class Table:
    """A table with the requested columns that the file has.

    Attributes:
        path: of the file.
        sha256: of its bytes, hexadecimal.
        data: missing values are null.
    """

    path: Path
    sha256: str
    data: pa.Table
    _lines: np.ndarray | None = None

    def where(self, row: int) -> str:
        """Return the position of a row as an editor shows it; rows count from 0 here, from 1 there.

        Without the folder: a rejection is part of the shards, which are the same wherever it lies.
        """
        if self._lines is None:
            return f"{self.path.name} row {row + 1}"
        return f"{self.path.name} line {self._lines[row]}"


def find_tables(root: Path) -> dict[str, Path]:
    """Return the tables of a folder by name without suffix; hidden files are skipped.

    Raises:
        InputError: no folder, no table, or two of one name.
    """
    if not root.is_dir():
        raise InputError(f"There is no folder {root}.")
    files: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in SUFFIXES:
            continue
        if path.stem in files:
            raise InputError(f"{files[path.stem]} and {path} would both be the split {path.stem}.")
        files[path.stem] = path
    if not files:
        raise InputError(f"{root} has no table: put a <split>.csv or <split>.parquet into it.")
    return files


def read_table(path: Path, columns: Mapping[str, pa.DataType]) -> Table:
    """Read a table.

    Column names may differ in case and surrounding spaces; index columns of pandas and R are
    ignored. CSV cells are separated by commas, semicolons or tabs, as in the header. In text
    and numbers alike, what spreadsheets, databases and pandas write for a missing value is one.

    Args:
        path: `.csv` or `.parquet`.
        columns: all that the table may have: string or float64.

    Raises:
        InputError: it can't be read, or a column or cell is not as it should be.
    """
    data = read_bytes(path)
    digest = hashlib.sha256(data).hexdigest()
    if path.suffix.lower() == ".csv":
        names, cells, lines = _read_csv(path, to_utf8(path, data), set(columns))
        indexes: set[str] = set()
    else:
        names, cells, indexes = _read_parquet(path, data)
        lines = None
    plain = [name.strip().lower() for name in names]
    taken: dict[str, pa.ChunkedArray] = {}
    raw = Table(path, digest, pa.table({}), lines)
    for written, name, cell in zip(names, plain, cells, strict=True):
        if name not in columns and (INDEX_COLUMN.fullmatch(name) or written in indexes):
            continue
        if name not in columns:
            raise InputError(
                f"{path} has a column {written!r} that is not known: "
                f"the columns are {', '.join(columns)}."
            )
        if name in taken:
            raise InputError(f"{path} has a column twice: {', '.join(names)}.")
        taken[name] = _converted(raw, name, cell, columns[name])
    return Table(path, digest, pa.table(taken), lines)


def _read_csv(
    path: Path, data: bytes, known: set[str]
) -> tuple[list[str], Sequence[pa.ChunkedArray], np.ndarray]:
    """Names and cells of the columns, as text, and the line of each row."""
    lines = np.arange(1, data.count(b"\n") + 2)
    if data.endswith(b"\n"):
        data, lines = data[:-1], lines[:-1]
    if BLANK_LINE.search(data):
        filled = [(n, line) for n, line in enumerate(data.split(b"\n"), 1) if line.strip(b" ")]
        lines = np.array([n for n, _ in filled], dtype=np.int64)
        data = b"\n".join(line for _, line in filled)
    if not data:
        raise InputError(f"{path} is empty: its first line has the names of the columns.")
    header, _, body = data.partition(b"\n")
    try:
        names, delimiter = _header(header.decode(), known)
    except csv.Error as error:
        raise InputError(f"{path} line {lines[0]} is not CSV: {error}.") from None
    lines = lines[1:]
    numbered = [f"{n}" for n in range(len(names))]
    if not len(lines):
        return names, [pa.chunked_array([[]], pa.string()) for _ in names], lines
    try:
        table = pa_csv.read_csv(
            pa.BufferReader(body),
            read_options=pa_csv.ReadOptions(column_names=numbered),
            parse_options=pa_csv.ParseOptions(delimiter=delimiter),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(numbered, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowException as error:
        raise _not_csv(path, body, lines, delimiter, len(names), error) from None
    if table.num_rows != len(lines):
        problem = ValueError("a quoted cell does not end on its line")
        raise _not_csv(path, body, lines, delimiter, len(names), problem)
    return names, table.columns, lines


def _header(text: str, known: set[str]) -> tuple[list[str], str]:
    """The names of the columns and the delimiter that gives the most known ones."""

    def split(delimiter: str) -> list[str]:
        return next(csv.reader([text], delimiter=delimiter))

    def hits(delimiter: str) -> int:
        return len(known & {name.strip().lower() for name in split(delimiter)})

    delimiter = max(DELIMITERS, key=hits)
    return split(delimiter), delimiter


def _not_csv(
    path: Path, body: bytes, lines: np.ndarray, delimiter: str, width: int, error: Exception
) -> InputError:
    """The first line that is not a row of the table."""
    for line, text in zip(lines, body.decode().split("\n"), strict=True):
        try:
            found = len(next(csv.reader([text], delimiter=delimiter, strict=True)))
        except csv.Error as reason:
            return InputError(f"{path} line {line} is not CSV: {reason}.")
        if found != width:
            return InputError(f"{path} line {line} has {found} cells, its header has {width}.")
    return InputError(f"{path} can't be read: {str(error).splitlines()[0]}.")


def _read_parquet(path: Path, data: bytes) -> tuple[list[str], Sequence[pa.ChunkedArray], set[str]]:
    """Return names and cells of the columns, and which of them pandas reads as an index."""
    try:
        table = pq.read_table(pa.BufferReader(data), partitioning=None)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise InputError(f"{path} can't be read: {str(error).splitlines()[0]}.") from None
    try:
        described: Mapping[str, Any] = table.schema.pandas_metadata or {}
        indexes = {name for name in described["index_columns"] if isinstance(name, str)}
    except (ValueError, LookupError, TypeError):  # it has none, or what another tool made of it
        indexes = set()
    return table.column_names, table.columns, indexes


def _converted(
    table: Table, name: str, column: pa.ChunkedArray, target: pa.DataType
) -> pa.ChunkedArray:
    """The column with the target's type, missing values null."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    try:
        if target == pa.float64() and any(kind(column.type) for kind in numeric):
            numbers = column.cast(pa.float64(), safe=False)
            return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)
        if pa.types.is_temporal(column.type) or pa.types.is_boolean(column.type):
            raise pa.ArrowInvalid("no text")
        text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    except pa.ArrowException:
        wanted = "numbers" if target == pa.float64() else "text"
        raise InputError(
            f"{table.path} has {column.type} in the column {name!r}, not {wanted}."
        ) from None
    missing = pc.is_in(pc.utf8_lower(text), pa.array(sorted(NULLS)))
    text = pc.if_else(missing, pa.scalar(None, pa.string()), text)
    if target == pa.string():
        return text
    numbers = pc.match_substring_regex(text, FINITE_OR_INF, ignore_case=True)
    if pc.any(pc.invert(numbers)).as_py():
        row = pc.index(numbers, False).as_py()
        raise InputError(f"{table.where(row)}: {name} {not_a_number(text[row].as_py())}")
    return pc.replace_substring(text, "+", "", max_replacements=1).cast(pa.float64())
