import json

import pytest

from data_shards.build import BuildOptions, build
from data_shards.errors import ShardError
from data_shards.finalize import finalize
from data_shards.index import read_table
from data_shards.manifest import load
from data_shards.sources.folder import FolderSource

OPTIONS = BuildOptions(samples_per_shard=3)


def test_one_worker_and_two_write_the_same_bytes(folder, tmp_path, read_files):
    moved, again = [], tmp_path / "two"
    build(FolderSource(folder), tmp_path / "one", OPTIONS, workers=1, watchers=[Moved(moved)])
    build(FolderSource(folder), again, OPTIONS, workers=2, watchers=[Moved(moved)])
    assert read_files(tmp_path / "one") == read_files(again)
    assert sum(moved) == 2 * 12


def test_rejections_are_listed_and_counted(folder, tmp_path):
    manifest = build(FolderSource(folder), tmp_path / "out", OPTIONS, workers=1)
    lines = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    rejections = [json.loads(line) for line in lines]
    assert [(r["split"], r["row"], r["reason"]) for r in rejections] == [
        ("train", 1, "missing_file"),
        ("train", 3, "damaged_image"),
    ]
    assert "a1.jpg" in rejections[0]["detail"]
    assert "g3.jpg" in rejections[1]["detail"]
    assert manifest.splits["train"].rejected == {"damaged_image": 1, "missing_file": 1}
    assert manifest.splits["train"].samples == 10


def test_too_many_rejections_end_the_job_with_the_list(folder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ShardError, match=r"2 samples were rejected, more than --max-rejected 1"):
        build(FolderSource(folder), out, OPTIONS, workers=1, max_rejected=1)
    assert len((out / "rejected.jsonl").read_text().splitlines()) == 2
    assert not (out / "manifest.json").exists()
    assert build(FolderSource(folder), out, OPTIONS, workers=1, max_rejected=2) == load(out)


def test_only_what_is_missing_is_written_again(memory_source, tmp_path, read_files):
    source, out = memory_source(), tmp_path / "out"
    build(source, out, OPTIONS, workers=1)
    before = read_files(out)
    (out / "train" / "train-000001.parquet").unlink()
    (out / "val" / "val-000000.tar").unlink()
    (out / "train" / "train-000001.tar.123.tmp").write_bytes(b"half")
    asked = []
    source.sample = lambda split, row, ask=source.sample: (
        asked.append((split, row)) or ask(split, row)
    )
    build(source, out, OPTIONS, workers=1)
    assert read_files(out) == before
    assert asked == [("train", row) for row in (3, 4, 5)] + [("val", row) for row in (0, 1, 2)]


def test_a_shard_without_samples_has_no_tar(memory_source, tmp_path):
    source = memory_source(rejected=frozenset({3, 4, 5}), rows={"train": 9})
    manifest = build(source, tmp_path / "out", OPTIONS, workers=1)
    names = sorted(path.name for path in (tmp_path / "out" / "train").glob("*.tar"))
    assert names == ["train-000000.tar", "train-000002.tar"]
    assert [shard.shard for shard in manifest.splits["train"].shards] == [0, 2]
    table = read_table(tmp_path / "out" / "train" / "train.arrow")
    assert table["shard"].to_pylist() == [0, 0, 0, 2, 2, 2]


def test_a_split_without_samples_is_an_error(memory_source, tmp_path):
    source = memory_source(rejected=frozenset(range(4)))
    with pytest.raises(ShardError, match="Not one sample of val"):
        build(source, tmp_path / "out", OPTIONS, workers=1)
    assert (tmp_path / "out" / "rejected.jsonl").exists()


def test_a_seed_deals_rows_to_shards_but_loses_none(memory_source, tmp_path):
    keys = {}
    for seed in (None, 1, 2):
        out = tmp_path / str(seed)
        build(memory_source(), out, BuildOptions(samples_per_shard=3, seed=seed), workers=1)
        keys[seed] = read_table(out / "train" / "train.arrow")["key"].to_pylist()
    assert sorted(keys[1]) == sorted(keys[2]) == keys[None]
    assert keys[1] != keys[2] != keys[None]


def test_finalize_wants_every_shard(memory_source, tmp_path, read_files):
    out = tmp_path / "out"
    build(memory_source(), out, OPTIONS, workers=1)
    before = read_files(out)
    finalize(out)
    assert read_files(out) == before
    (out / "train" / "train-000002.parquet").unlink()
    with pytest.raises(ShardError, match=r"1 of 4 shards of train .*train-000002\.parquet"):
        finalize(out)


def test_a_full_disk_is_one_sentence(memory_source, tmp_path, monkeypatch):
    calls = iter(range(99))

    def sync(_descriptor):
        if next(calls) >= 2:  # the plan's file and folder came through
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("data_shards.atomic.os.fsync", sync)
    with pytest.raises(ShardError, match=r"train-000000\.tar can't be written: No space left"):
        build(memory_source(), tmp_path / "out", OPTIONS, workers=1)
    assert not list((tmp_path / "out").rglob("*.tmp"))
