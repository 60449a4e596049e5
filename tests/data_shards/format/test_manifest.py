import hashlib
import json
import shutil

import numpy as np
import pytest

from data_shards.base.errors import InputError, ShardError
from data_shards.format.images import decode
from data_shards.format.manifest import load, manifest_hash
from data_shards.format.pixels import PixelSums, grid_histogram


@pytest.fixture
def edited(small_set, tmp_path):
    """A copy of the manifest with fields replaced."""

    def edit(**fields):
        manifest = json.loads((small_set / "manifest.json").read_text())
        (tmp_path / "manifest.json").write_text(json.dumps(manifest | fields))
        return tmp_path

    return edit


def test_it_says_what_is_on_disk(small_set):
    manifest = load(small_set)
    train = manifest.splits["train"]
    assert (manifest.name, manifest.format_version, train.kind) == ("memory", 3, "pairs")
    assert (train.rows, train.samples, train.rejected) == (10, 9, {"missing_file": 1})
    assert [shard.samples for shard in train.shards] == [3, 4, 2]
    for shard in train.shards:
        data = (small_set / "train" / f"train-{shard.shard:06d}.tar").read_bytes()
        assert (shard.bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert train.bytes == sum(shard.bytes for shard in train.shards)
    assert manifest.classes[255] == "void"


def test_mean_and_deviation_are_those_of_the_images(small_set, memory_source):
    source = memory_source()
    images = [
        decode("p", source.sample("train", row).parts["ground.jpg"])
        for row in range(10)
        if row != 2
    ]
    expected = PixelSums.from_histogram(
        np.sum([grid_histogram(np.asarray(i)) for i in images], axis=0)
    )
    assert load(small_set).splits["train"].views["ground"] == expected.statistics()
    full = np.concatenate([np.asarray(i).reshape(-1, 3) for i in images])
    np.testing.assert_allclose(expected.statistics().mean, full.mean(axis=0), atol=4)
    np.testing.assert_allclose(expected.statistics().std, full.std(axis=0), atol=4)


def test_the_hash_is_of_the_bytes(small_set):
    data = (small_set / "manifest.json").read_bytes()
    assert manifest_hash(small_set) == hashlib.sha256(data).hexdigest()


def test_a_newer_format_is_refused(edited):
    with pytest.raises(InputError, match="format version 4, this code reads up to 3: update smdt"):
        load(edited(format_version=4, something_new=True))


@pytest.mark.parametrize("fields", [{"splits": 3}, {"unknown": 1}, {"format_version": "one"}])
def test_a_damaged_manifest_is_one_sentence(edited, fields):
    with pytest.raises(ShardError, match=f"is damaged: {next(iter(fields))}"):
        load(edited(**fields))


def test_folders_without_a_manifest(small_set, tmp_path):
    with pytest.raises(InputError, match="There is no folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="not a data set"):
        load(tmp_path)
    shutil.copy(small_set / "build.json", tmp_path)
    with pytest.raises(InputError, match="has not finished: start the same"):
        manifest_hash(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda split: split | {"table_sha256": "/etc/passwd"},
        lambda split: split | {"shards": [split["shards"][0] | {"sha256": "../" * 8 + "x"}]},
    ],
)
def test_no_hash_is_a_path(edited, small_set, change):
    splits = json.loads((small_set / "manifest.json").read_text())["splits"]
    with pytest.raises(ShardError, match="sha256"):
        load(edited(splits=splits | {"train": change(splits["train"])}))


def test_no_split_is_a_path(edited, small_set):
    splits = json.loads((small_set / "manifest.json").read_text())["splits"]
    load(edited(splits={"out": splits["train"]}))
    with pytest.raises(ShardError, match=r"splits\.\.\./out"):
        load(edited(splits={"../out": splits["train"]}))
