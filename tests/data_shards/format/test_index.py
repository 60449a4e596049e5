import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.base.errors import ShardError
from data_shards.format.index import (
    MERGED_SCHEMA,
    SCHEMA,
    PartEntry,
    Rejection,
    ShardSummary,
    index_row,
    merge_parts,
    read_digests,
    read_part,
    read_summary,
    read_table,
    write_part,
)
from data_shards.format.sample import IMAGES, PARTS, Meta

NUMBER = st.none() | st.floats(-1e7, 1e7)
PAIR = st.none() | st.tuples(st.floats(-1e7, 1e7), st.floats(-1e7, 1e7))
METAS = st.builds(
    Meta,
    st.text(st.characters(codec="utf-8"), max_size=20),
    lat=NUMBER,
    lon=NUMBER,
    utm=PAIR,
    heading=NUMBER,
    extent_m=NUMBER,
    elevation=PAIR,
    positive=st.none() | st.integers(0, 2**31),
    semi_positives=st.lists(st.integers(0, 2**31), max_size=3).map(tuple),
)
ENTRIES = st.dictionaries(
    st.sampled_from(PARTS),
    st.builds(
        PartEntry,
        st.integers(0, 2**40),
        st.integers(1, 2**33),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**15),
        st.integers(0, 2**15),
        st.binary(min_size=16, max_size=16),
    ),
)


def summary(samples, rejected=()):
    return ShardSummary(
        samples=samples, tar_bytes=0, tar_sha256="", pixels={}, rejected=list(rejected)
    )


@settings(deadline=None, max_examples=15)
@given(st.lists(st.lists(st.tuples(METAS, ENTRIES), max_size=4), min_size=1, max_size=3))
def test_what_is_written_is_read_back_through_parts_and_merge(tmp_path_factory, shards):
    folder = tmp_path_factory.mktemp("index")
    parts, expected = [], []
    for shard, samples in enumerate(shards):
        rows = [index_row(f"k{shard}-{n}", shard, *sample) for n, sample in enumerate(samples)]
        parts.append(folder / f"{shard}.parquet")
        write_part(parts[-1], rows, summary(len(rows)))
        assert read_summary(parts[-1]).samples == read_part(parts[-1]).num_rows == len(rows)
        expected += [(f"k{shard}-{n}", shard, *sample) for n, sample in enumerate(samples)]
    assert merge_parts(parts, folder / "all.arrow") == len(expected)
    table = read_table(folder / "all.arrow")
    assert table.schema.equals(MERGED_SCHEMA)
    for row, (key, shard, meta, entries) in zip(table.to_pylist(), expected, strict=True):
        assert (row["key"], row["shard"], row["source_id"]) == (key, shard, meta.source_id)
        for part in PARTS:
            entry = entries.get(part)
            offset, size, crc, height, width, _ = entry or (-1, 0, 0, 0, 0, b"")
            assert (row[f"{part}_offset"], row[f"{part}_size"]) == (offset, size)
            assert row[f"{part}_crc32c"] == crc
            if part in IMAGES:
                assert (row[f"{part}_height"], row[f"{part}_width"]) == (height, width)
        for column, value in {
            "lat": meta.lat,
            "lon": meta.lon,
            "utm_e": meta.utm and meta.utm[0],
            "utm_n": meta.utm and meta.utm[1],
            "heading": meta.heading,
            "extent_m": meta.extent_m,
            "elevation_min": meta.elevation and meta.elevation[0],
            "elevation_max": meta.elevation and meta.elevation[1],
        }.items():
            assert math.isnan(row[column]) if value is None else row[column] == value
        tiles = [row[f"semi_positive_{n}"] for n in (1, 2, 3)]
        assert row["positive"] == (-1 if meta.positive is None else meta.positive)
        assert tiles == [*meta.semi_positives, -1, -1, -1][:3]


@given(st.lists(ENTRIES, max_size=5))
def test_digests_are_in_the_part_and_not_in_the_merged_index(tmp_path_factory, samples):
    path = tmp_path_factory.mktemp("index") / "0.parquet"
    rows = [index_row(f"k{n}", 0, Meta("x"), entries) for n, entries in enumerate(samples)]
    write_part(path, rows, summary(len(rows)))
    digests = read_digests(path)
    for view in ("ground", "aerial"):
        expected = [entries[view].digest if view in entries else bytes(16) for entries in samples]
        assert digests[view].tobytes() == b"".join(expected)
    assert read_part(path).schema.equals(SCHEMA)


def test_a_part_from_before_the_digests_is_read(tmp_path):
    rows = [index_row("k0", 0, Meta("x"), {})]
    write_part(tmp_path / "new.parquet", rows, summary(1))
    pq.write_table(read_part(tmp_path / "new.parquet"), tmp_path / "old.parquet")
    assert read_digests(tmp_path / "old.parquet") is None
    assert read_part(tmp_path / "old.parquet").num_rows == 1


def test_a_merged_index_is_mapped_not_copied(small_set):
    table = read_table(small_set / "train" / "train.arrow")
    for name in ("shard", "ground_offset", "aerial_crc32c", "lat", "positive"):
        column = table[name]
        assert column.num_chunks == 1
        array = column.chunk(0).to_numpy(zero_copy_only=True)
        assert array.dtype == np.dtype(column.type.to_pandas_dtype())


def test_an_index_of_version_0_1_0_names_neither_tiles_nor_places(small_set, tmp_path):
    tiles = ["positive", "semi_positive_1", "semi_positive_2", "semi_positive_3"]
    part = small_set / "train" / "train-000000.parquet"
    table = small_set / "train" / "train.arrow"
    old_part = pq.read_table(part).drop_columns(tiles)
    pq.write_table(old_part, tmp_path / "old.parquet")
    old_table = read_table(table).drop_columns([*tiles, "place"])
    with pa.ipc.new_file(tmp_path / "old.arrow", old_table.schema) as writer:
        writer.write_table(old_table)
    for old, new in (
        (read_part(tmp_path / "old.parquet"), read_part(part)),
        (read_table(tmp_path / "old.arrow"), read_table(table)),
    ):
        assert set(old["positive"].to_pylist()) == {-1}
        assert old["semi_positive_3"].chunk(0).to_numpy(zero_copy_only=True).dtype == np.int64
        assert old.schema.names == new.schema.names
    assert read_table(tmp_path / "old.arrow")["place"] == read_table(table)["place"]


def test_rejections_travel_in_the_part(tmp_path):
    rejection = Rejection(split="train", row=3, reason="missing_file", detail="x is missing.")
    write_part(tmp_path / "p.parquet", [], summary(0, [rejection]))
    assert read_summary(tmp_path / "p.parquet").rejected == [rejection]
    assert read_part(tmp_path / "p.parquet").num_rows == 0


@pytest.mark.parametrize("damage", ["missing", "empty", "noise"])
def test_a_damaged_index_is_one_sentence(tmp_path, damage):
    path = tmp_path / "train-000000.parquet"
    if damage != "missing":
        path.write_bytes(b"" if damage == "empty" else b"noise" * 100)
    for read in (read_part, read_summary, read_table, read_digests):
        with pytest.raises(ShardError, match=r"train-000000\.parquet is (missing|damaged)"):
            read(path)


def test_a_merged_index_joins_places_of_equal_aerial_images(tmp_path):
    digests = [b"a" * 16, b"b" * 16, b"a" * 16, bytes(16), bytes(16)]
    for shard, numbers in enumerate(([0, 1], [2, 3, 4])):
        rows = [
            index_row(f"k{n}", shard, Meta("x", lat=n, lon=n), {"aerial": entry(digests[n])})
            for n in numbers
        ]
        write_part(tmp_path / f"{shard}.parquet", rows, summary(len(rows)))
    parts = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    merge_parts(parts, tmp_path / "all.arrow")
    assert read_table(tmp_path / "all.arrow")["place"].to_pylist() == [0, 1, 0, 2, 3]
    # A part from before the digests has no equal images that are known.
    pq.write_table(read_part(parts[0]).replace_schema_metadata(None), parts[0])
    merge_parts(parts, tmp_path / "all.arrow")
    assert read_table(tmp_path / "all.arrow")["place"].to_pylist() == [0, 1, 2, 3, 4]


def entry(digest: bytes) -> PartEntry:
    return PartEntry(0, 1, 0, 8, 8, digest)


def test_a_rejection_may_name_a_file_whose_name_is_not_utf8():
    rejection = Rejection(split="train", row=0, reason="missing_file", detail="/a\udcff/é")
    line = rejection.model_dump_json()
    assert json.loads(line)["detail"] == "/a\\udcff/é"
    assert Rejection.model_validate_json(line) == rejection
