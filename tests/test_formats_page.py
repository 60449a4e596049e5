"""What docs/formats.md says of a data set, compared with the code and with a real one."""

import ast
import json
import re
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from data_shards.base.atomic import atomic_file, unpublished_folder
from data_shards.build.dataset import build
from data_shards.format import layout, manifest
from data_shards.format.duplicates import count_and_list
from data_shards.format.index import (
    MERGED_SCHEMA,
    PART_SCHEMA,
    PLACE,
    Rejection,
    ShardSummary,
    index_row,
)
from data_shards.format.plan import BuildOptions, BuildPlan
from data_shards.format.sample import IMAGES, PART_FILES, PARTS, Meta
from data_shards.world.source import WorldSource
from smdt.inference import gallery
from smdt.telemetry.metrics import DAMAGE_REASONS
from tests.formats_page import calls, keys, names_of, section, tables, words


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("formats") / "world"
    build(WorldSource(0, 5, 2, "easy", (32, 128), 64), root, BuildOptions(), workers=1)
    return root


@pytest.fixture(scope="module")
def members(data_set):
    with tarfile.open(layout.tar_path(data_set, "train", 0)) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar]


def test_versions():
    written = {row[0].strip("`"): (*words(row[1]), int(row[2])) for row in tables("Versions")[0]}
    assert written == {
        layout.MANIFEST: ("format_version", manifest.FORMAT_VERSION),
        gallery.DESCRIPTION: ("format", gallery.FORMAT),
    }


def test_names_of_unfinished_files(tmp_path):
    with atomic_file(tmp_path / "name"):
        names = [file.name for file in tmp_path.iterdir()]
    with unpublished_folder(tmp_path / "name") as folder:
        names.append(folder.name)
    shown = keys("How files are replaced")
    for form, name in zip(shown[:2], names, strict=True):
        pattern = re.escape(form.replace("<name>", "name"))
        assert re.fullmatch(re.sub(r"<16.*>", "[0-9a-f]{16}", pattern), name)
    assert shown[2:] == ["step-<8 digits>.tmp", "step-<8 digits>-<16 hex digits>.tmp"]


def test_files_of_a_data_set(data_set):
    shown = {
        name.replace("<split>", split).replace("<shard>", "000000")
        for name in keys("Data set")
        for split in ("train", "val")
    }
    there = {str(f.relative_to(data_set)) for f in data_set.rglob("*") if f.is_file()}
    assert shown == there


def test_members_of_a_shard(data_set, members):
    assert set(keys("Shard")) == PART_FILES | {"meta.json"}
    assert keys("Shard") == sorted(keys("Shard"))
    names = [info.name.partition(".")[2] for info, _ in members]
    assert names == ["aerial.jpg", "ground.jpg", "meta.json", "seg.png"] * 5
    size = layout.tar_path(data_set, "train", 0).stat().st_size
    assert size % 10_240 == 0
    assert "multiple of 10,240" in section("Shard")
    for info, _ in members:
        assert (info.offset_data - info.offset, info.offset % 512) == (512, 0)
        assert (oct(info.mode), info.uname, info.gname, info.uid, info.mtime) == (
            *("0o444", "smdt", "smdt"),
            *(0, 0),
        )


def test_meta_json(members):
    (text,) = {data for info, data in members if info.name == "train-000000000.meta.json"}
    assert list(json.loads(text)) == keys("meta.json") == names_of(Meta)
    assert b" " not in text
    assert Meta.from_json(b'{"source_id": "a"}') == Meta("a")


def test_idx(data_set, members):
    head, first, *_ = layout.idx_path(data_set, "train", 0).read_text().splitlines()
    assert head == "v1.2 5"
    expected = [(i.name.partition(".")[2], i.offset_data, i.size, i.name) for i, _ in members[:4]]
    assert first == " ".join(str(word) for member in expected for word in member)
    assert "`<part> <offset> <size> <name>`" in section(".idx")


def index_columns() -> list[tuple[str, str, str]]:
    """Name, type and what stands for nothing, of each column on the page."""
    columns, group = [], []
    rows = [[row[0].strip("`"), row[1], row[3]] for row in tables("Merged index")[0]]
    for row, after in zip(rows, [*rows[1:], ["", "", ""]], strict=True):
        group.append(row)
        mark = re.match(r"<\w+>", row[0])
        if mark and after[0].startswith(mark[0]):
            continue
        each = {"<part>": PARTS, "<image>": IMAGES}[mark[0]] if mark else [""]
        columns += [(re.sub(r"<\w+>", of, n), kind, no) for of in each for n, kind, no in group]
        group = []
    return columns


def schema_of(columns) -> list[tuple[str, str]]:
    return [(name, kind) for name, kind, *_ in columns]


def test_columns_of_the_indexes(data_set):
    digests = [(row[0].strip("`"), row[1]) for row in tables("Index part")[0]]
    merged = schema_of(index_columns())
    assert merged == [(field.name, str(field.type)) for field in MERGED_SCHEMA]
    of_part = [column for column in merged if column[0] != PLACE.name] + digests
    assert of_part == [(field.name, str(field.type)) for field in PART_SCHEMA]
    with pa.memory_map(str(layout.table_path(data_set, "train"))) as file:
        reader = pyarrow.ipc.open_file(file)
        assert (reader.num_record_batches, reader.schema) == (1, MERGED_SCHEMA)
    part = pq.ParquetFile(layout.part_path(data_set, "train", 0))
    assert part.schema_arrow.remove_metadata() == PART_SCHEMA
    assert part.metadata.row_group(0).column(0).compression == "SNAPPY"
    assert list(json.loads(part.schema_arrow.metadata[b"data_shards"])) == keys("Index part", 1)
    assert list(ShardSummary.model_fields) == keys("Index part", 1)


def test_what_stands_for_nothing():
    row = index_row("k", 0, Meta("s"), {})
    shown = {name: no for name, _, no in index_columns() if no}
    known = {"key", "source_id", "shard", "ground_digest", "aerial_digest"}
    assert {name: f"{row[name]:g}".replace("nan", "NaN") for name in row.keys() - known} == shown
    assert {row["ground_digest"], row["aerial_digest"]} == {bytes(16)}


def test_build_json(data_set):
    assert list(json.loads((data_set / layout.PLAN).read_text())) == keys("build.json")
    assert list(BuildPlan.model_fields) == keys("build.json")


def fields_of(model, prefix="") -> list[str]:
    """The keys of a manifest below one of its models, those of lists and maps by `*`."""
    inner = {
        "options": ("options", manifest.BuildOptions),
        "splits": ("splits.*", manifest.SplitEntry),
        "shards": ("shards.*", manifest.ShardEntry),
    }
    own = [f"{prefix}{name}" for name in model.model_fields]
    return own + [
        key
        for name in model.model_fields
        if name in inner
        for key in fields_of(inner[name][1], f"{prefix}{inner[name][0]}.")
    ]


def test_manifest_json(data_set):
    assert keys("manifest.json") == fields_of(manifest.Manifest)
    assert f"| `format_version` | 1 | {manifest.FORMAT_VERSION} |" in section("manifest.json")


@pytest.mark.parametrize("version", range(1, manifest.FORMAT_VERSION + 1))
def test_an_older_manifest_lacks_what_came_later(data_set, tmp_path, version):
    content = json.loads((data_set / layout.MANIFEST).read_text()) | {"format_version": version}
    expected = manifest.load(data_set).model_dump(mode="json") | {"format_version": version}
    for row in tables("manifest.json")[0]:
        path = row[0].strip("`").split(".")
        assert (int(row[1]) > 1) == bool(row[3]), f"{path}: what is read where it is missing"
        if int(row[1]) <= version:
            continue
        for old, new in zip(_at(content, path[:-1]), _at(expected, path[:-1]), strict=True):
            del old[path[-1]]
            new[path[-1]] = json.loads(*words(row[3]))
    (tmp_path / layout.MANIFEST).write_text(json.dumps(content))
    assert manifest.load(tmp_path).model_dump(mode="json") == expected


def _at(content, path):
    """The objects at a path, in which `*` is every one of them."""
    if not path:
        return [content]
    below = content.values() if path[0] == "*" else [content[path[0]]]
    return [found for each in below for found in _at(each, path[1:])]


def test_rejected_and_duplicates(data_set):
    assert keys("rejected.jsonl") == list(Rejection.model_fields)
    raised = {
        c.args[0].value for c in calls("RejectedSample") if isinstance(c.args[0], ast.Constant)
    }
    images, sources, models = ({*words(row[1])} for row in tables("manifest.json")[1])
    assert images | sources == raised
    assert models == {*DAMAGE_REASONS}
    same = {view: np.ones((2, 2), np.uint64) for view in ("ground", "aerial")}
    (line, *_) = count_and_list(data_set, {"val": same})[1].splitlines()
    assert list(json.loads(line)) == keys("duplicates.jsonl")
    assert {*json.loads(line)["samples"][0]} == {*words(tables("duplicates.jsonl")[0][1][1])}
