"""Parsing of text files that users write: lists, tables, hostfiles."""

import codecs
import csv
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data_shards.base.errors import InputError

NULLS = frozenset(["", "nan", "-nan", "na", "n/a", "<na>", "#na", "#n/a", "none", "null"])
"""Cells that mean a missing value, in lower case: what spreadsheets, databases and pandas write."""

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
BYTE_ORDER_MARKS = (codecs.BOM_UTF8, *UTF16_MARKS)


class Line(NamedTuple):
    """A line of a list; the first has number 1."""

    number: int
    text: str


class Row(NamedTuple):
    """A row of a table without types; the first line of the file has number 1."""

    line: int
    fields: Sequence[str]


def read_bytes(path: Path, hint: str = "") -> bytes:
    """The bytes of a file that a user names.

    Args:
        path: of the file.
        hint: what to do where it can't be read, as the end of the sentence.

    Raises:
        InputError: it can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        advice = f": {hint}" if hint else "."
        raise InputError(f"{path} can't be read ({error.strerror}){advice}") from None


def to_utf8(path: Path, data: bytes) -> bytes:
    r"""Text as UTF-8 without a byte order mark, its lines ended by `\n` (pure).

    Args:
        path: for messages.
        data: UTF-8, or UTF-16 with a byte order mark.

    Raises:
        InputError: it is something else.
    """
    try:
        if data.startswith(UTF16_MARKS):
            data = data.decode("utf-16").encode()
        data = data.removeprefix(codecs.BOM_UTF8)
        data.decode()
    except UnicodeDecodeError as error:
        line = _unix(data[: error.start]).count(b"\n") + 1
        raise InputError(f"{path} line {line} is not UTF-8 text: save the file as UTF-8.") from None
    return _unix(data)


def _unix(data: bytes) -> bytes:
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in data else data


def read_text(path: Path, hint: str = "") -> str:
    """A text as `to_utf8` cleans it.

    Raises:
        InputError: it can't be read, or is not text.
    """
    return to_utf8(path, read_bytes(path, hint)).decode()


def lines_of(text: str) -> list[Line]:
    """The lines that are not blank, without spaces around them (pure)."""
    stripped = (Line(n, line.strip()) for n, line in enumerate(text.split("\n"), start=1))
    return [line for line in stripped if line.text]


def read_rows(path: Path, hint: str = "") -> list[Row]:
    """The rows of a comma-separated table without a header, blank lines left out.

    Raises:
        InputError: it can't be read, or is not such a table.
    """
    reader = csv.reader(io.StringIO(read_text(path, hint)), strict=True, skipinitialspace=True)
    try:
        cells = ((reader.line_num, [field.strip() for field in fields]) for fields in reader)
        return [Row(line, fields) for line, fields in cells if any(fields)]
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} is not CSV: {error}.") from None


def number(cell: str) -> float | None:
    """The number that a cell holds; None is a missing value (pure).

    Raises:
        ValueError: it is neither; the message ends a sentence that begins with the cell's place.
    """
    if cell.strip().lower() in NULLS:
        return None
    value = float(cell) if NUMBER.fullmatch(cell.strip()) else math.nan
    if not math.isfinite(value):
        raise ValueError(not_a_number(cell))
    return value


def not_a_number(cell: str) -> str:
    """The end of a sentence about a cell (pure)."""
    comma = re.fullmatch(r"[+-]?\d+,\d+", cell.strip())
    advice = f": write {cell.strip().replace(',', '.')}" if comma else ""
    return f"is {cell!r}, not a finite number{advice}."
