"""Batches: the right samples and pixels, whatever the timing, the ranks and the damage."""

import gc
import json
import threading
import time
from contextlib import closing
from itertools import chain

import numpy as np
import pytest
import torch

from smdt.data import reader as reader_module
from smdt.data.order import DataState
from smdt.data.reader import Reader
from smdt.data.split import DataError, DataInputError, Split


def start(root, seed=3) -> DataState:
    return DataState(Split.open(root, "train").manifest_hash, seed, 0, 0)


@pytest.fixture
def quarantined(tmp_path):
    """The lines of the quarantine list."""
    return lambda: [json.loads(line) for line in (tmp_path / "quarantine.jsonl").open()]


def ids(loader, state, epochs=1) -> list[list[int]]:
    with closing(loader.stream(state, epochs)) as batches:
        return [batch.sample_ids.tolist() for batch in batches]


def raising(error):
    def fail(*_):
        raise error

    return fail


def data_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("smdt-")]


def test_batches_hold_the_samples_that_they_say(built, train, pixels):
    loader = train(built)
    seen = []
    for number, batch in enumerate(loader.stream(start(built), 2)):
        assert (batch.epoch, batch.index) == divmod(number, loader.steps_per_epoch)
        assert batch.state.consumed == (batch.index + 1) * 6
        assert batch.heading_deg.tolist() == batch.sample_ids.tolist()  # the source made it so
        assert np.isnan(batch.extent_m).tolist() == (batch.sample_ids % 2 == 0).tolist()
        assert set(batch.elevation_min) == {-30.0}
        assert set(batch.elevation_max) == {40.0}
        for slot, sample_id in enumerate(batch.sample_ids):
            for view, expected in pixels("train", sample_id).items():
                image = batch.images[view][slot]
                assert image.dtype == torch.uint8
                assert np.array_equal(image.numpy(), expected)
        seen += batch.sample_ids.tolist()
    assert loader.steps_per_epoch == 10
    assert sorted(seen[:60]) == sorted(seen[60:]) == list(range(60))
    assert seen[:60] != seen[60:]


def test_no_batch_holds_a_place_twice(built, train):
    places = Split.open(built, "train").places
    for batch in ids(train(built, global_batch=20), start(built), epochs=5):
        assert len(set(places[batch])) == 20


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_batches_of_one(built, train, world_size):
    whole = ids(train(built), start(built))
    shares = [
        ids(train(built, rank=rank, world_size=world_size), start(built))
        for rank in range(world_size)
    ]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == whole


@pytest.mark.parametrize("after", [0, 3, 9, 10, 14])
def test_a_resumed_stream_is_the_remainder(built, train, after):
    with closing(train(built).stream(start(built), 2)) as stream:
        batches = list(stream)
    state = batches[after].state
    rest = ids(train(built), DataState.from_json(state.to_json()), epochs=2)
    assert rest == [batch.sample_ids.tolist() for batch in batches[after + 1 :]]


def test_timing_does_not_change_the_order(built, train, monkeypatch):
    expected = ids(train(built), start(built))
    honest, rng = Reader.read, np.random.default_rng()

    def slow(self, sample_id, part):
        time.sleep(rng.random() * 0.01)
        return honest(self, sample_id, part)

    monkeypatch.setattr(Reader, "read", slow)
    for threads, ahead in ((1, 1), (7, 3), (3, 20)):
        loader = train(built, read_threads=threads, read_ahead=ahead)
        assert ids(loader, start(built)) == expected


def test_closing_ends_all_threads(built, train):
    stream = train(built).stream(start(built), 5)
    next(stream)
    assert data_threads()
    stream.close()
    assert data_threads() == []


def test_garbage_ends_all_threads(built, train):
    stream = train(built).stream(start(built), 5)
    next(stream)
    del stream
    gc.collect()
    assert data_threads() == []


def test_an_exception_in_a_thread_arrives_as_itself(built, train, monkeypatch):
    class SurpriseError(Exception):
        pass

    monkeypatch.setattr(Reader, "read", raising(SurpriseError()))
    with pytest.raises(SurpriseError):
        next(train(built).stream(start(built), 1))
    gc.collect()
    assert data_threads() == []


def test_a_held_batch_stays(built, train):
    held = [
        (batch, {view: images.clone() for view, images in batch.images.items()})
        for batch in train(built).stream(start(built), 2)
    ]
    for batch, copies in held:
        assert all(torch.equal(batch.images[view], copy) for view, copy in copies.items())


def test_a_damaged_sample_is_replaced_the_same_way(shards, train, flip_byte, quarantined):
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


def test_damage_is_counted(shards, train, flip_byte, sample_value):
    flip_byte(Split.open(shards, "train"), 7, "ground")
    loader = train(shards)
    ids(loader, start(shards), epochs=2)
    registry = loader._metrics.registry
    assert sample_value(registry, "smdt_quarantined_samples_total", reason="checksum") == 2
    assert sample_value(registry, "smdt_read_bytes_total") > 0
    assert sample_value(registry, "smdt_read_seconds_count") >= 2 * 2 * 60


def test_a_tar_that_vanishes_while_training_is_quarantined(shards, train, quarantined):
    split = Split.open(shards, "train")
    loader = train(shards)
    split.tar(0).unlink()
    for batch in ids(loader, start(shards)):
        assert len(set(split.places[batch])) == 6
        assert min(batch) >= 20
    assert {line["key"] for line in quarantined()} == {f"train-{i:09d}" for i in range(20)}
    assert {line["reason"] for line in quarantined()} == {"missing"}


def test_a_tar_that_shrinks_while_training_is_quarantined(shards, train, quarantined):
    split = Split.open(shards, "train")
    loader = train(shards)
    with split.tar(20).open("r+b") as file:
        file.truncate(split.column("ground_offset")[30] + 10)
    seen = set(chain(*ids(loader, start(shards))))
    assert seen == set(range(60)) - set(range(30, 40))
    assert {line["reason"] for line in quarantined()} == {"truncated"}


def test_too_many_damaged_samples_end_the_run(shards, train, flip_byte, tmp_path):
    split = Split.open(shards, "train")
    for sample_id in range(4):
        flip_byte(split, sample_id, "ground")
    ids(train(shards, max_quarantined=4), start(shards), epochs=3)  # distinct samples count
    with pytest.raises(DataError, match=f"max_quarantined=3.*{tmp_path}/quarantine.jsonl"):
        ids(train(shards, max_quarantined=3), start(shards))
    assert data_threads() == []


def test_half_copied_shards_are_refused_at_the_start(shards, train, evaluation):
    tar = Split.open(shards, "train").tar(20)
    with tar.open("r+b") as file:
        file.truncate(1024)
    with pytest.raises(DataError, match=f"1 of 3 tars .* {tar}: 20 samples .*max_quarantined=19"):
        train(shards, max_quarantined=19)
    train(shards, max_quarantined=20)
    with pytest.raises(DataError, match="max_missing=0"):
        evaluation(shards, split="train")


def test_storage_that_fails_for_a_while_changes_nothing(built, train, monkeypatch):
    expected = ids(train(built), start(built))
    honest, failures = reader_module.os.pread, iter([True] * 40)
    rng = np.random.default_rng(0)

    def flaky(descriptor, size, offset):
        if rng.random() < 0.3 and next(failures, False):
            raise OSError(5, "Input/output error")
        return honest(descriptor, size, offset)

    monkeypatch.setattr(reader_module.os, "pread", flaky)
    monkeypatch.setattr(reader_module, "RETRY_DELAYS_SECONDS", (0.001,) * 41)
    assert ids(train(built), start(built)) == expected


def test_storage_that_stays_away_ends_the_run(built, train, monkeypatch):
    monkeypatch.setattr(reader_module, "RETRY_DELAYS_SECONDS", (0.001, 0.001))
    monkeypatch.setattr(reader_module.os, "pread", raising(OSError(116, "Stale file handle")))
    with pytest.raises(DataError, match=r"\.tar can't be read \(Stale file handle\)"):
        ids(train(built), start(built))


def test_closing_does_not_wait_for_storage(built, train, monkeypatch):
    loader = train(built, read_ahead=8)
    stream = loader.stream(start(built), 5)
    next(stream)
    monkeypatch.setattr(reader_module, "RETRY_DELAYS_SECONDS", (60.0,))
    monkeypatch.setattr(reader_module.os, "pread", raising(OSError(5, "Input/output error")))
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < 5
    assert data_threads() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "gallery"}, "Training needs pairs.*'gallery'.*'aerial'"),
        ({"world_size": 4}, "6 does not divide by 4 ranks"),
        ({"global_batch": 61}, "61 is more than split 'train'.*60 samples"),
        ({"global_batch": 50}, "50 is more than .* 60 samples at 36 places"),
        ({"views": ("ground", "seg")}, "60 of the 60 samples .* no seg image"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(built, train, options, message):
    with pytest.raises(DataInputError, match=message) as caught:
        train(built, **options)
    assert str(caught.value).count("\n") == 0


def test_a_state_of_another_run_is_refused(built, train):
    loader = train(built)
    good = start(built)
    for state, message in [
        (DataState("0" * 64, 3, 0, 0), "other shards"),
        (DataState(good.manifest_hash, 4, 0, 0), "seed 4, not 3"),
        (DataState(good.manifest_hash, 3, 0, 10), "10 samples .* no multiple of .* 6"),
    ]:
        with pytest.raises(DataInputError, match=message):
            loader.stream(state, 1)


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_reads_each_sample_once(built, evaluation, pixels, world_size):
    seen, batches = [], []
    for rank in range(world_size):
        loader = evaluation(built, rank=rank, world_size=world_size)
        made = list(loader)
        batches.append(len(made))
        for batch in made:
            seen += batch.sample_ids.tolist()
            for slot, sample_id in enumerate(batch.sample_ids):
                expected = pixels("val", sample_id)["ground"]
                assert np.array_equal(batch.images["ground"][slot].numpy(), expected)
        assert loader.missing == []
    assert seen == list(range(23))
    assert max(batches) == loader.longest


def test_evaluation_of_a_gallery(built, evaluation):
    (batch,) = evaluation(built, split="gallery", views=("aerial",), batch=8)
    assert batch.sample_ids.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(DataInputError, match=r"'gallery' \(aerial\).*no ground image"):
        evaluation(built, split="gallery")


def test_evaluation_leaves_damaged_samples_out(shards, evaluation, flip_byte):
    split = Split.open(shards, "val")
    for sample_id in (5, 8, 9, 10, 11):
        flip_byte(split, sample_id, "aerial")
    loader = evaluation(shards, max_missing=5)
    for _ in range(2):  # a second pass starts its list anew
        seen = [i for batch in loader for i in batch.sample_ids.tolist()]
        assert seen == [i for i in range(23) if i not in (5, 8, 9, 10, 11)]
        assert [sample["source_id"] for sample in loader.missing] == [
            f"val.{i}" for i in (5, 8, 9, 10, 11)
        ]
        assert loader.missing[0]["reason"] == "checksum"
        json.dumps(loader.missing)
    with pytest.raises(DataError, match="max_missing=0: val-000000005"):
        list(evaluation(shards))
    assert data_threads() == []
