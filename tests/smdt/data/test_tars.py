"""Shards in an S3 store give the batches of the same shards in a folder, whatever happens."""

import json
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from data_shards.base import store
from data_shards.base.errors import DataError, DataInputError
from data_shards.base.store import location
from data_shards.build.dataset import build
from data_shards.format import layout
from data_shards.format.plan import BuildOptions
from smdt.data.shard_cache import GIGABYTE, CacheConfig
from smdt.data.split import Split

pytestmark = pytest.mark.slow  # a server answers for the store


@pytest.fixture
def stored(s3, built) -> str:
    """The data set `built` in a store."""
    s3.put(built, s3.url)
    return s3.url


@pytest.fixture
def cache(tmp_path):
    """Where copies go: room for `tars` of the largest of a data set, or for all."""

    def make(root: Path, tars: float | None = None) -> CacheConfig:
        folder = str(tmp_path / "cache")
        if tars is None:
            return CacheConfig(folder=folder)
        tar = max(path.stat().st_size for path in root.rglob("*.tar"))
        return CacheConfig(folder=folder, gigabytes=tars * tar / GIGABYTE)

    return make


@pytest.fixture
def pixels_of():
    """Everything that two epochs of a loader hand out."""

    def of(loader, on_batch=lambda number: None) -> list[tuple[list[int], bytes]]:
        found = []
        with closing(loader.stream(loader.start, 2)) as batches:
            for number, batch in enumerate(batches):
                on_batch(number)
                images = b"".join(np.asarray(batch.images[v]).tobytes() for v in batch.images)
                found.append((batch.sample_ids.tolist(), images))
        return found

    return of


@pytest.fixture
def quarantined(tmp_path):
    """What is in the quarantine list: key -> reason."""

    def read() -> dict[str, str]:
        path = tmp_path / "quarantine.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return {json.loads(line)["key"]: json.loads(line)["reason"] for line in lines}

    return read


WINDOW = {"order": {"window": 20}, "read_threads": 2, "read_ahead": 1}
"""Shard by shard, so that a small cache downloads in the middle of an epoch."""


def test_ranks_of_a_node_download_each_file_once(s3, stored, built, train, pixels_of, cache):
    before = s3.proxy.bytes_down
    ranks = [train(stored, rank=rank, world_size=2, cache=cache(built)) for rank in range(2)]
    found = [pixels_of(loader) for loader in ranks]
    down = s3.proxy.bytes_down - before
    assert found == [pixels_of(train(built, rank=rank, world_size=2)) for rank in range(2)]
    tars = sum(path.stat().st_size for path in (built / "train").glob("*.tar"))
    assert tars < down < 1.5 * tars
    assert found == [pixels_of(loader) for loader in ranks]
    assert s3.proxy.bytes_down - before < down + 1000


def test_slow_or_small_the_batches_are_the_same(s3, stored, built, train, pixels_of, cache):
    expected = pixels_of(train(built, **WINDOW))
    small = cache(built, tars=2.5)
    s3.proxy.delay_seconds = 0.02
    assert pixels_of(train(stored, **WINDOW, cache=small)) == expected
    held = sum(path.stat().st_size for path in Path(small.folder).iterdir())
    assert held <= small.limit_bytes


def test_a_store_that_is_away_for_two_seconds_changes_nothing(
    s3, stored, built, train, pixels_of, cache
):
    expected = pixels_of(train(built, **WINDOW))
    loader = train(stored, **WINDOW, cache=cache(built, tars=1.5))

    def cut(number: int) -> None:
        if number == 2:
            s3.proxy.cut()
            threading.Timer(2.0, s3.proxy.mend).start()

    start = time.monotonic()
    assert pixels_of(loader, cut) == expected
    assert time.monotonic() - start > 2


def test_a_store_that_stays_away_ends_the_stream(
    s3, stored, built, train, pixels_of, cache, monkeypatch, data_threads
):
    monkeypatch.setattr(store, "GIVE_UP_SECONDS", 1.0)
    loader = train(stored, **WINDOW, cache=cache(built, tars=1.5))
    start = time.monotonic()
    with pytest.raises(DataError, match=rf"^{stored}/train/train-00000\d.tar is out of reach"):
        pixels_of(loader, lambda number: s3.proxy.cut())
    assert time.monotonic() - start < 90  # one request that hangs may take 77 s
    assert data_threads() == []


def test_a_data_set_that_is_gone_is_not_a_missing_tar(
    s3, stored, built, train, pixels_of, cache, monkeypatch, quarantined
):
    monkeypatch.setattr(store, "GIVE_UP_SECONDS", 0.5)
    loader = train(stored, cache=cache(built))
    root = location(stored)
    root.fs.rm(root.path, recursive=True)
    with pytest.raises(DataError, match=r"manifest\.json is out of reach"):
        pixels_of(loader)
    assert quarantined() == {}


def test_a_tar_that_is_missing_in_the_store_is_quarantined(
    stored, built, train, pixels_of, cache, quarantined
):
    loader = train(stored, cache=cache(built))
    location(f"{stored}/train/train-000001.tar").unlink()
    pixels_of(loader)
    assert quarantined() == {f"train-{i:09d}": "missing" for i in range(20, 40)}


def test_damage_in_the_store_is_quarantined_as_in_a_folder(
    s3, shards, train, pixels_of, cache, quarantined, flip_byte, tmp_path
):
    split = Split.open(shards, "train")
    flip_byte(split, 4, "ground")
    with split.tar(20).open("r+b") as file:
        file.truncate(split.column("ground_offset")[30] + 10)
    s3.put(shards, s3.url)
    expected = pixels_of(train(shards))
    reasons = quarantined()
    (tmp_path / "quarantine.jsonl").unlink()
    before = s3.proxy.bytes_down
    assert pixels_of(train(s3.url, cache=cache(shards))) == expected
    assert quarantined() == reasons
    assert set(reasons.values()) == {"checksum", "truncated"}
    tars = sum(path.stat().st_size for path in (shards / "train").glob("*.tar"))
    assert s3.proxy.bytes_down - before < 2.5 * tars  # the two damaged ones twice


@pytest.mark.parametrize("damage", ["flipped", "emptied"])
def test_a_bad_copy_is_made_anew_and_nothing_is_quarantined(
    stored, built, train, pixels_of, cache, quarantined, damage
):
    config = cache(built)
    expected = pixels_of(train(stored, cache=config))
    for copy in Path(config.folder).iterdir():
        data = np.frombuffer(copy.read_bytes(), dtype=np.uint8)
        copy.write_bytes(b"" if damage == "emptied" else (data ^ 1).tobytes())
    assert pixels_of(train(stored, cache=config)) == expected
    assert quarantined() == {}


def test_a_data_set_that_changed_in_the_store_is_noticed(
    stored, built, train, pixels_of, cache, quarantined, other_pictures
):
    old = train(stored, cache=cache(built))
    pixels_of(old)
    root = location(stored)
    root.fs.rm(root.path, recursive=True)
    build(other_pictures, stored, BuildOptions(samples_per_shard=20), workers=1)
    new = train(stored, cache=cache(built))
    assert new.start.manifest_hash != old.start.manifest_hash
    pixels_of(new)
    assert quarantined() == {}
    with pytest.raises(DataInputError, match="made with other shards"):
        new.stream(old.start, 1)


def test_a_cache_that_cannot_serve_the_order_is_refused(stored, built, train, cache):
    with pytest.raises(DataInputError, match=r"raise it, or set data\.order\.window.* 20 samples"):
        train(stored, cache=cache(built, tars=2.5))
    with pytest.raises(DataInputError, match=r"A tar of split 'train'.*more than data\.cache"):
        train(stored, **WINDOW, cache=cache(built, tars=0.9))
    train(stored, order={"policy": "sequential"}, cache=cache(built, tars=1.5))


def test_an_evaluation_reads_from_the_store(stored, built, evaluation, cache, monkeypatch):
    monkeypatch.setenv("HOME", str(Path(cache(built).folder).parent))
    found = [batch.sample_ids.tolist() for batch in evaluation(stored)]
    assert found == [batch.sample_ids.tolist() for batch in evaluation(built)]
    location(f"{stored}/val/val-000000.tar").unlink()
    with pytest.raises(DataError, match=r"val-000000\.tar: 20 samples are out of reach"):
        evaluation(stored)


def test_an_index_of_another_data_set_is_refused(s3, stored, built, cache):
    table = layout.table_path(built, "val").read_bytes()
    root = location(stored)
    root.fs.pipe_file(layout.table_path(root, "train").path, table)
    with pytest.raises(
        DataError, match=r"/train\.arrow is missing or does not have the manifest's checksum"
    ):
        Split.open(stored, "train", cache(built))
    (root / "train/train.arrow").unlink()
    with pytest.raises(
        DataError, match=r"/train\.arrow is missing or does not have the manifest's checksum"
    ):
        Split.open(stored, "train", cache(built))
