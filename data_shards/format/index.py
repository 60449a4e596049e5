"""The index: one row a sample, where its bytes are, what they must hash to, where it was taken."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, BaseModel, ConfigDict

from data_shards.base.atomic import atomic_file
from data_shards.base.errors import ShardError, StoreError
from data_shards.base.store import Location, read_bytes
from data_shards.format.pixels import DIGEST_BYTES, PixelSums
from data_shards.format.places import place_numbers
from data_shards.format.sample import IMAGES, MAX_SEMI_POSITIVES, PARTS, Meta

ABSENT = -1
"""Offset of a part, or number of a tile, that a sample doesn't have."""

TILES = ("positive", *(f"semi_positive_{n + 1}" for n in range(MAX_SEMI_POSITIVES)))
"""Columns that name tiles of the `aerial` split."""

NAN = float("nan")
SUMMARY_KEY = b"data_shards"


def _schema() -> pa.Schema:
    fields = [("key", pa.string()), ("source_id", pa.string()), ("shard", pa.int32())]
    for part in PARTS:
        fields += [
            (f"{part}_offset", pa.int64()),
            (f"{part}_size", pa.int64()),
            (f"{part}_crc32c", pa.uint32()),
        ]
    for image in IMAGES:
        fields += [(f"{image}_height", pa.int32()), (f"{image}_width", pa.int32())]
    numbers = ["lat", "lon", "utm_e", "utm_n", "heading", "extent_m"]
    fields += [(name, pa.float64()) for name in [*numbers, "elevation_min", "elevation_max"]]
    fields += [(name, pa.int64()) for name in TILES]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])


SCHEMA = _schema()
"""Columns of an index. An absent part has offset -1, size 0, CRC 0, height and width 0; an unknown
number is NaN, an absent tile -1. Degrees, metres, bytes, pixels."""


VIEWS = ("ground", "aerial")
DIGESTS = {view: f"{view}_digest" for view in VIEWS}
"""Columns that only the index parts have; training never maps them."""

NO_DIGEST = bytes(DIGEST_BYTES)
DIGEST_TYPE = pa.binary(DIGEST_BYTES)
PART_SCHEMA = pa.schema(
    [*SCHEMA, *(pa.field(name, DIGEST_TYPE, nullable=False) for name in DIGESTS.values())]
)


PLACE = pa.field("place", pa.int64(), nullable=False)
MERGED_SCHEMA = SCHEMA.append(PLACE)
"""Columns of a merged index: samples with equal `place` numbers show the same place."""


class PartEntry(NamedTuple):
    """Offset, size and CRC32C of a part in its tar; for an image also its shape and digest."""

    offset: int
    size: int
    crc32c: int
    height: int = 0
    width: int = 0
    digest: bytes = NO_DIGEST


NO_PART = PartEntry(ABSENT, 0, 0)


def _in_utf8(text: str) -> str:
    """A text with the bytes escaped that are not valid UTF-8 in file names."""
    return text.encode(errors="backslashreplace").decode()


class Rejection(BaseModel):
    """A source row that is not in the shards; a line of `rejected.jsonl`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: str
    row: int
    reason: str
    detail: Annotated[str, AfterValidator(_in_utf8)]


class ShardSummary(BaseModel):
    """Metadata of an index part about its whole shard."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: int
    tar_bytes: int
    tar_sha256: str
    """Hexadecimal; empty for a shard whose rows were all rejected: it has no tar."""
    pixels: dict[str, PixelSums]
    rejected: list[Rejection]


def index_row(
    key: str, shard: int, meta: Meta, parts: Mapping[str, PartEntry]
) -> dict[str, str | int | float | bytes]:
    """One row of `PART_SCHEMA`; `parts` by the names of `PARTS`."""
    row: dict[str, str | int | float | bytes] = {
        "key": key,
        "source_id": meta.source_id,
        "shard": shard,
    }
    for part in PARTS:
        entry = parts.get(part, NO_PART)
        row[f"{part}_offset"] = entry.offset
        row[f"{part}_size"] = entry.size
        row[f"{part}_crc32c"] = entry.crc32c
        if part in IMAGES:
            row[f"{part}_height"] = entry.height
            row[f"{part}_width"] = entry.width
        if part in DIGESTS:
            row[DIGESTS[part]] = entry.digest
    row["lat"] = _number(meta.lat)
    row["lon"] = _number(meta.lon)
    row["utm_e"], row["utm_n"] = meta.utm or (NAN, NAN)
    row["heading"] = _number(meta.heading)
    row["extent_m"] = _number(meta.extent_m)
    row["elevation_min"], row["elevation_max"] = meta.elevation or (NAN, NAN)
    tiles = [ABSENT if meta.positive is None else meta.positive, *meta.semi_positives]
    assert len(tiles) <= len(TILES), meta
    row |= dict.fromkeys(TILES, ABSENT) | dict(zip(TILES, tiles, strict=False))
    return row


def write_part(path: Location, rows: Sequence[Mapping[str, Any]], summary: ShardSummary) -> None:
    """Write the index part of a shard: from then on the shard exists."""
    schema = PART_SCHEMA.with_metadata({SUMMARY_KEY: summary.model_dump_json().encode()})
    with atomic_file(path) as file:
        pq.write_table(pa.Table.from_pylist(list(rows), schema), file, store_schema=True)


def read_summary(path: Location) -> ShardSummary:
    """The summary of a part, without reading its rows.

    Raises:
        ShardError: the file is missing or damaged.
    """
    try:
        return ShardSummary.model_validate_json(pq.read_schema(_source(path)).metadata[SUMMARY_KEY])
    except Exception as error:
        raise _unreadable(path, error) from None


def read_part(path: Location) -> pa.Table:
    """The rows of a part, with `SCHEMA`.

    Raises:
        ShardError: the file is missing or damaged.
    """
    try:
        table = _with_tiles(pq.read_table(_source(path), partitioning=None))
        return table.select(SCHEMA.names).cast(SCHEMA)
    except Exception as error:
        raise _unreadable(path, error) from None


def read_digests(path: Location) -> dict[str, np.ndarray] | None:
    """uint64 [N, 2] by the names of `VIEWS`: digests of a part's pixels, 0 if it is missing.

    None: the part is older than the digests.

    Raises:
        ShardError: the file is missing or damaged.
    """
    try:
        names = pq.read_schema(_source(path)).names
        if not set(DIGESTS.values()) <= set(names):
            return None
        table = pq.read_table(_source(path), columns=list(DIGESTS.values()), partitioning=None)
        return {view: digest_words(table[name].to_pylist()) for view, name in DIGESTS.items()}
    except Exception as error:
        raise _unreadable(path, error) from None


def digest_words(digests: Sequence[bytes]) -> np.ndarray:
    """uint64 [N, 2]: digests as numbers to sort by."""
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)


def merge_parts(parts: Iterable[Location], path: Location) -> int:
    """Write the rows of all parts, in order, as one Arrow IPC file; return their number.

    It is one uncompressed record batch: memory-mapped, every number column is one array. It says
    which samples share a place, so that no rank of a run has to find out.

    Raises:
        ShardError: a part is missing or damaged.
    """
    tables, digests = [], []
    for part in parts:
        tables.append(read_part(part))
        unknown = np.zeros((tables[-1].num_rows, 2), dtype=np.uint64)
        digests.append((read_digests(part) or {"aerial": unknown})["aerial"])
    table = pa.concat_tables(tables).combine_chunks().replace_schema_metadata(None)
    table = _with_places(table, np.concatenate(digests))
    with atomic_file(path) as file, pa.ipc.new_file(file, MERGED_SCHEMA) as writer:
        writer.write_table(table)
    return int(table.num_rows)


def read_table(path: Location) -> pa.Table:
    """A merged index, with `MERGED_SCHEMA`: memory-mapped, or read whole from a store.

    Raises:
        ShardError: the file is missing or damaged.
    """
    try:
        local = isinstance(path, Path)
        return open_table(pa.memory_map(str(path)) if local else read_bytes(path))
    except Exception as error:  # Arrow raises whatever the broken bytes lead it to
        raise _unreadable(path, error) from None


def _with_places(table: pa.Table, digests: np.ndarray | None = None) -> pa.Table:
    names = ("positive", "lat", "lon", "utm_e", "utm_n")
    positive, lat, lon, utm_e, utm_n = (table[name].to_numpy() for name in names)
    places = place_numbers(positive, lat, lon, utm_e, utm_n, digests)
    return table.append_column(PLACE, pa.array(places))


def open_table(data: pa.NativeFile | pa.Buffer | bytes) -> pa.Table:
    """A merged index in memory, not copied."""
    table = _with_tiles(pa.ipc.open_file(data).read_all())
    # Version 0.1.0 left places to the reader.
    return table if PLACE.name in table.column_names else _with_places(table)


def _with_tiles(table: pa.Table) -> pa.Table:
    """Version 0.1.0 wrote no tiles: none of its samples has any."""
    for name in TILES:
        if name not in table.column_names:
            absent = pa.array(np.full(table.num_rows, ABSENT))
            table = table.append_column(SCHEMA.field(name), absent)
    return table


def _number(value: float | None) -> float:
    return NAN if value is None else value


def _source(path: Location) -> Path | pa.BufferReader:
    """Return what Arrow reads a part from: a path, or a buffer."""
    return path if isinstance(path, Path) else pa.BufferReader(read_bytes(path))


def _unreadable(path: Location, error: Exception) -> ShardError:
    if isinstance(error, StoreError):
        return error
    if isinstance(error, FileNotFoundError):
        return ShardError(f"The index file {path} is missing.")
    said = str(error).partition("\n")[0] or type(error).__name__
    return ShardError(f"The index file {path} is damaged ({said}).")
