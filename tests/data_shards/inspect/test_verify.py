import hashlib
import json
import random
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_shards.base.errors import InputError, ShardError
from data_shards.build.dataset import build
from data_shards.build.finalize import finalize
from data_shards.format.index import read_table
from data_shards.format.manifest import load
from data_shards.format.plan import BuildOptions
from data_shards.inspect.stats import stats
from data_shards.inspect.verify import verify


@pytest.fixture
def copy(small_set, tmp_path):
    return shutil.copytree(small_set, tmp_path / "copy")


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def row_of(root, key):
    split = key.split("-")[0]
    rows = read_table(root / split / f"{split}.arrow").to_pylist()
    return next(row for row in rows if row["key"] == key)


def damages(root):
    return [(d.file, d.key, d.part, d.reason) for d in verify(root, workers=1).damages]


def test_a_whole_data_set_has_no_damage(small_set):
    seen = []
    result = verify(small_set, workers=1, progress=seen.append)
    assert (result.shards, result.samples, result.damages) == (4, 12, [])
    assert sum(seen) == 12


@pytest.mark.slow
def test_two_workers_find_the_same(copy):
    row = row_of(copy, "val-000000001")
    flip(copy / "val" / "val-000000.tar", row["meta_offset"])
    (copy / "train" / "train-000002.tar").unlink()
    assert verify(copy, workers=2) == verify(copy, workers=1)


@pytest.mark.parametrize("part", ["ground", "aerial", "seg", "meta"])
def test_a_flipped_byte_names_sample_and_part(copy, part):
    row = row_of(copy, "train-000000004")
    offset = row[f"{part}_offset"] + row[f"{part}_size"] // 2
    flip(copy / "train" / "train-000001.tar", offset)
    assert damages(copy) == [("train/train-000001.tar", "train-000000004", part, "checksum")]


def test_a_flipped_byte_in_a_header_or_in_padding_is_found(copy):
    row = row_of(copy, "train-000000004")
    tar = copy / "train" / "train-000001.tar"
    flip(tar, row["meta_offset"] + row["meta_size"])
    assert damages(copy) == [("train/train-000001.tar", "", "", "checksum")]
    flip(tar, row["ground_offset"] - 512)
    assert ("train/train-000001.tar", "train-000000004", "ground", "index") in damages(copy)


def test_a_truncated_tar_names_every_lost_sample(copy):
    row = row_of(copy, "train-000000006")
    tar = copy / "train" / "train-000001.tar"
    tar.write_bytes(tar.read_bytes()[: row["ground_offset"] + 10])
    found = damages(copy)
    lost = {key for _, key, _, reason in found if reason == "truncated" and key}
    assert lost == {"train-000000006", "train-000000007"}


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("train/train-000001.tar", "missing"),
        ("train/train-000001.idx", "missing"),
        ("train/train-000001.parquet", "missing"),
        ("train/train.arrow", "missing"),
    ],
)
def test_a_missing_file_is_named(copy, file, reason):
    (copy / file).unlink()
    assert damages(copy) == [(file, "", "", reason)]


@pytest.mark.parametrize("file", ["train-000001.parquet", "train.arrow", "train-000001.idx"])
def test_a_damaged_index_is_named(copy, file):
    path = copy / "train" / file
    flip(path, path.stat().st_size // 2)
    assert {damage[0] for damage in damages(copy)} >= {f"train/{file}"}


def test_a_shard_that_the_manifest_does_not_know_is_named(copy):
    shutil.copy(copy / "train" / "train-000001.tar", copy / "train" / "train-000009.tar")
    assert damages(copy) == [("train/train-000009.tar", "", "", "count")]


def test_wrong_statistics_are_found(copy):
    manifest = copy / "manifest.json"
    text = manifest.read_text()
    mean = text[text.index('"mean": [') :].split(",")[0].split("[")[1].strip()
    manifest.write_text(text.replace(mean, "1.5"))
    assert damages(copy) == [("manifest.json", "", "", "count")]


def test_nothing_to_verify(tmp_path):
    with pytest.raises(InputError, match="not a data set"):
        verify(tmp_path)


def test_a_resized_data_set_is_whole(tmp_path, memory_source):
    options = BuildOptions(ground_size=(16, 48), aerial_size=24, filter="area", chroma="4:4:4")
    build(memory_source(), tmp_path / "out", options, workers=1)
    assert damages(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["duplicates.jsonl", "rejected.jsonl"])
def test_a_damaged_list_is_found(copy, name):
    path = copy / name
    content = path.read_bytes()
    for damaged in (content + b"{}\n", content[1:] + b"\n"):
        path.write_bytes(damaged)
        assert damages(copy) == [(name, "", "", "count")]
    path.unlink()
    assert damages(copy) == [(name, "", "", "missing")]
    path.symlink_to(name)
    assert damages(copy) == [(name, "", "", "truncated")]
    path.unlink()
    path.mkdir()
    assert damages(copy) == [(name, "", "", "truncated")]


def test_a_manifest_without_splits_is_damaged(copy):
    path = copy / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"splits": {}}))
    with pytest.raises(ShardError, match=r"manifest\.json is damaged: splits"):
        verify(copy, workers=1)


def test_wrong_counts_of_duplicates_are_found(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"]["train"]["duplicates"]["ground"]["shared"] = 3
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert damages(copy) == [("manifest.json", "", "", "count")]


def test_a_wrong_digest_is_found(copy):
    path = copy / "train" / "train-000001.parquet"
    table = pq.read_table(path)
    digests = table["aerial_digest"].to_pylist()
    column = pa.array([bytes(16), *digests[1:]], pa.binary(16))
    place = table.column_names.index("aerial_digest")
    pq.write_table(table.set_column(place, table.schema.field(place), column), path)
    manifest = json.loads((copy / "manifest.json").read_text())
    entry = manifest["splits"]["train"]["shards"][1]
    entry["index_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    first = table["key"][0].as_py()
    assert damages(copy) == [("train/train-000001.parquet", first, "aerial", "index")]


def test_a_data_set_from_before_the_digests_is_whole(copy):
    manifest = json.loads((copy / "manifest.json").read_text()) | {"format_version": 1}
    del manifest["options"]["filter"], manifest["options"]["chroma"]
    for split, entry in manifest["splits"].items():
        del entry["duplicates"]
        for shard in entry["shards"]:
            path = copy / split / f"{split}-{shard['shard']:06d}.parquet"
            table = pq.read_table(path)
            pq.write_table(table.drop_columns(["ground_digest", "aerial_digest"]), path)
            shard["index_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    (copy / "duplicates.jsonl").unlink()
    assert damages(copy) == []
    assert load(copy).options.filter == "lanczos"
    assert {split.duplicates for split in stats(copy).values()} == {None}
    finalize(copy)
    assert damages(copy) == []


def rehash(root, path):
    """Make the manifest say the present hash of an index part or a merged index."""
    manifest = json.loads((root / "manifest.json").read_text())
    entry = manifest["splits"][path.parent.name]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if path.suffix == ".arrow":
        entry["table_sha256"] = digest
    else:
        number = int(path.stem.rpartition("-")[2])
        next(e for e in entry["shards"] if e["shard"] == number)["index_sha256"] = digest
    (root / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("offset", [-5, 1 << 40, (1 << 63) - 1])
@pytest.mark.parametrize("size", [-7, 1 << 40, 100])
def test_offsets_and_sizes_out_of_range_are_damage(copy, offset, size):
    path = copy / "train" / "train-000001.parquet"
    table = pq.read_table(path)
    for name, value in (("ground_offset", offset), ("ground_size", size)):
        place = table.column_names.index(name)
        column = pa.array([value, *table[name].to_pylist()[1:]], table[name].type)
        table = table.set_column(place, table.schema.field(place), column)
    pq.write_table(table, path)
    rehash(copy, path)
    key = table["key"][0].as_py()
    found = {(file, where, part) for file, where, part, _ in damages(copy)}
    assert ("train/train-000001.tar", key, "ground") in found


def test_an_index_that_failed_its_hash_is_never_read(copy, monkeypatch):
    read = []
    for name in ("read_table", "read_part", "read_digests"):
        for module in ("verify", "verify_shard"):
            monkeypatch.setattr(
                f"data_shards.inspect.{module}.{name}",
                lambda path: read.append(path),
                raising=False,
            )
    for split in ("train", "val"):
        for path in (copy / split).iterdir():
            if path.suffix in (".arrow", ".parquet"):
                path.write_bytes(path.read_bytes() + b"x")
    found = verify(copy, workers=1).damages
    assert read == []
    assert {damage.reason for damage in found} == {"checksum"}
    assert len(found) == 6


def flipped(data, rng):
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(data, rng):
    return data[: rng.randrange(len(data))]


def extended(data, rng):
    return data + rng.choice([b"\n", b"\0" * 512, rng.randbytes(1000)])


def scrambled(data, rng):
    start = rng.randrange(len(data))
    piece = rng.randbytes(64)
    return data[:start] + piece + data[start + len(piece) :]


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [flipped, cut, extended, scrambled])
@pytest.mark.parametrize(
    "file",
    [
        "train/train-000001.tar",
        "train/train-000001.parquet",
        "train/train-000001.idx",
        "train/train.arrow",
        "manifest.json",
    ],
)
def test_any_damage_is_named(copy, file, damaged):
    path, rng = copy / file, random.Random(f"{file} {damaged.__name__}")
    whole = path.read_bytes()
    for _ in range(12):
        data = damaged(whole, rng)
        path.write_bytes(data)
        assert named(copy), (data, whole)


def named(root):
    """Files with damage; a manifest that can't be read is named by an error."""
    try:
        return {file for file, *_ in damages(root)}
    except (ShardError, InputError) as error:
        return {"manifest.json"} if "manifest.json" in str(error) else set()


@pytest.mark.parametrize("file", ["train-000001.tar", "train.arrow", "train-000001.parquet"])
def test_a_folder_or_a_link_to_nothing_in_place_of_a_file_is_damage(copy, file):
    path = copy / "train" / file
    path.unlink()
    path.symlink_to("nowhere")
    assert (f"train/{file}", "", "", "missing") in damages(copy)
    path.unlink()
    path.mkdir()
    assert (f"train/{file}", "", "", "truncated") in damages(copy)


@pytest.mark.parametrize(
    ("before", "after"),
    [('"rows": 10', '"rows": 11'), ('"missing_file": 1', '"missing_file": 2'), ("memory", "m2")],
)
def test_a_manifest_that_is_not_of_its_build_is_found(copy, before, after):
    path = copy / "manifest.json"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    assert ("manifest.json", "", "", "count") in damages(copy)
