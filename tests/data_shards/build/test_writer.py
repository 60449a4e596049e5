import json
import tarfile

import google_crc32c
import numpy as np
import pytest

from data_shards.build.dataset import build
from data_shards.build.writer import prepare
from data_shards.format.images import decode
from data_shards.format.index import read_table
from data_shards.format.plan import BuildOptions
from data_shards.format.sample import IMAGES, PARTS, Meta, RejectedSample, Sample


def rows_of(root, split):
    return read_table(root / split / f"{split}.arrow").to_pylist()


@pytest.mark.parametrize("split", ["train", "val"])
def test_offsets_sizes_and_checksums_are_those_of_the_tar(small_set, split):
    for row in rows_of(small_set, split):
        tar = small_set / split / f"{split}-{row['shard']:06d}.tar"
        raw = tar.read_bytes()
        with tarfile.open(tar) as archive:
            members = {m.name: m for m in archive if m.name.startswith(row["key"] + ".")}
        assert len(members) == sum(row[f"{part}_size"] > 0 for part in PARTS)
        for name, member in members.items():
            part = name.split(".")[1]
            start, size = row[f"{part}_offset"], row[f"{part}_size"]
            assert (start, size) == (member.offset_data, member.size)
            assert google_crc32c.value(raw[start : start + size]) == row[f"{part}_crc32c"]
            if part in IMAGES:
                image = decode(name, raw[start : start + size])
                assert image.size == (row[f"{part}_width"], row[f"{part}_height"])


def test_the_tar_holds_what_the_source_gave(small_set, memory_source):
    source = memory_source(rejected=frozenset({2}))
    for row in rows_of(small_set, "train"):
        sample = source.sample("train", int(row["key"].split("-")[1]))
        with tarfile.open(small_set / "train" / f"train-{row['shard']:06d}.tar") as archive:
            found = {
                name.split(".", 1)[1]: archive.extractfile(name).read()
                for name in archive.getnames()
                if name.startswith(row["key"] + ".")
            }
        assert json.loads(found.pop("meta.json")) == json.loads(sample.meta.to_json())
        assert found == dict(sample.parts)
        assert row["source_id"] == sample.meta.source_id


def test_members_are_plain_adjacent_and_anonymous(small_set):
    for tar in small_set.rglob("*.tar"):
        assert tar.read_bytes()[257:265] == b"ustar\x0000"
        with tarfile.open(tar) as archive:
            members = archive.getmembers()
        keys = [member.name.split(".")[0] for member in members]
        assert sorted(keys) == keys
        for member in members:
            assert member.isreg()
            assert "/" not in member.name
            assert (member.mtime, member.mode, member.uid, member.gid) == (0, 0o444, 0, 0)
            assert (member.uname, member.gname) == ("smdt", "smdt")
            assert member.pax_headers == {}


def test_a_rejected_row_leaves_a_gap_in_the_keys(small_set):
    keys = [row["key"] for row in rows_of(small_set, "train")]
    assert keys == [f"train-{row:09d}" for row in range(10) if row != 2]


def test_images_can_be_made_smaller(tmp_path, memory_source):
    options = BuildOptions(ground_size=(16, 48), aerial_size=24, quality=80)
    manifest = build(memory_source(), tmp_path / "out", options, workers=1)
    assert "Pillow" in manifest.encoder
    for row in rows_of(tmp_path / "out", "val"):
        assert (row["ground_height"], row["ground_width"]) == (16, 48)
        assert (row["aerial_height"], row["aerial_width"]) == (24, 24)
        if row["seg_size"]:
            assert (row["seg_height"], row["seg_width"]) == (16, 48)


def test_a_class_map_of_another_size_is_rejected(make_jpeg, make_png):
    parts = {"ground.jpg": make_jpeg(8, 16), "seg.png": make_png(np.zeros((8, 8), np.uint8))}
    with pytest.raises(RejectedSample, match="bad_class_map"):
        prepare("k", Sample(Meta("x"), parts), BuildOptions())
