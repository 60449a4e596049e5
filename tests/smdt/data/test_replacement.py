"""Damage in training: the same stand-ins on every rank count, listed, counted, and bounded."""

import json
from itertools import chain

import pytest

from data_shards.base.errors import DataError
from smdt.data.split import Split


@pytest.fixture
def quarantined(tmp_path):
    """The lines of the quarantine list."""
    return lambda: [json.loads(line) for line in (tmp_path / "quarantine.jsonl").open()]


def test_a_damaged_sample_is_replaced_the_same_way(
    shards, train, flip_byte, quarantined, start, ids
):
    split = Split.open(shards, "train")
    expected = ids(train(shards), start(shards))
    damaged = expected[4][2]
    flip_byte(split, damaged, "aerial")
    loader = train(shards)
    found = ids(loader, start(shards))
    stand_in = found[4][2]
    assert found == [[stand_in if i == damaged else i for i in batch] for batch in expected]
    assert split.places[stand_in] not in split.places[expected[4]]
    (line,) = quarantined()
    assert line.pop("detail").endswith("fail their checksum.")
    assert line == {
        "epoch": 0,
        "batch": 4,
        "position": 2,
        "key": f"train-{damaged:09d}",
        "source_id": f"train.{damaged}",
        "shard": damaged // 20,
        "part": "aerial",
        "reason": "checksum",
        "stand_in": f"train-{stand_in:09d}",
        "rank": 0,
    }
    halves = [ids(train(shards, rank=rank, world_size=2), start(shards)) for rank in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == found


def test_damage_is_counted(shards, train, flip_byte, sample_value, start, ids):
    flip_byte(Split.open(shards, "train"), 7, "ground")
    loader = train(shards)
    ids(loader, start(shards), epochs=2)
    registry = loader._metrics.registry
    assert sample_value(registry, "smdt_quarantined_samples_total", reason="checksum") == 2
    assert sample_value(registry, "smdt_read_bytes_total") > 0
    assert sample_value(registry, "smdt_read_seconds_count") >= 2 * 2 * 60


def test_a_tar_that_vanishes_while_training_is_quarantined(shards, train, quarantined, start, ids):
    split = Split.open(shards, "train")
    loader = train(shards)
    split.tar(0).unlink()
    for batch in ids(loader, start(shards)):
        assert len(set(split.places[batch])) == 6
        assert min(batch) >= 20
    assert {line["key"] for line in quarantined()} == {f"train-{i:09d}" for i in range(20)}
    assert {line["reason"] for line in quarantined()} == {"missing"}


def test_a_tar_that_shrinks_while_training_is_quarantined(shards, train, quarantined, start, ids):
    split = Split.open(shards, "train")
    loader = train(shards)
    with split.tar(20).open("r+b") as file:
        file.truncate(split.column("ground_offset")[30] + 10)
    seen = set(chain(*ids(loader, start(shards))))
    assert seen == set(range(60)) - set(range(30, 40))
    assert {line["reason"] for line in quarantined()} == {"truncated"}


def test_too_many_damaged_samples_end_the_run(
    shards, train, flip_byte, tmp_path, start, ids, data_threads
):
    split = Split.open(shards, "train")
    for sample_id in range(4):
        flip_byte(split, sample_id, "ground")
    ids(train(shards, max_quarantined=4), start(shards), epochs=3)  # distinct samples count
    with pytest.raises(DataError, match=f"max_quarantined=3.*{tmp_path}/quarantine.jsonl"):
        ids(train(shards, max_quarantined=3), start(shards))
    assert data_threads() == []
