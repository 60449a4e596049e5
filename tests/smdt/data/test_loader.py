"""Batches: the right samples and pixels, whatever the timing, the ranks and the damage."""

import gc
import time
from contextlib import closing
from itertools import chain

import numpy as np
import pytest
import torch

from data_shards.base.errors import DataError, DataInputError
from smdt.data import neighbours
from smdt.data import tars as tars_module
from smdt.data.neighbours import NeighbourTable, nearest_by_position
from smdt.data.order import DataState
from smdt.data.reader import Reader
from smdt.data.split import Split


def test_batches_hold_the_samples_that_they_say(built, train, pixels, start):
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


def test_no_batch_holds_a_place_twice(built, train, start, ids):
    places = Split.open(built, "train").places
    for batch in ids(train(built, global_batch=20), start(built), epochs=5):
        assert len(set(places[batch])) == 20


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_batches_of_one(built, train, world_size, start, ids):
    whole = ids(train(built), start(built))
    shares = [
        ids(train(built, rank=rank, world_size=world_size), start(built))
        for rank in range(world_size)
    ]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == whole


@pytest.mark.parametrize("after", [0, 3, 9, 10, 14])
def test_a_resumed_stream_is_the_remainder(built, train, after, start, ids):
    with closing(train(built).stream(start(built), 2)) as stream:
        batches = list(stream)
    state = batches[after].state
    rest = ids(train(built), DataState.from_json(state.to_json()), epochs=2)
    assert rest == [batch.sample_ids.tolist() for batch in batches[after + 1 :]]


@pytest.mark.parametrize("policy", ["shuffle", "hard"])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 3), (3, 1)])
def test_a_resume_on_other_ranks_goes_on_with_the_same_global_batches(
    built, train, start, before, after, policy, tmp_path
):
    def of_all_ranks(state: DataState, world_size: int) -> list[tuple[list[int], DataState]]:
        streams = []
        for rank in range(world_size):
            loader = train(built, rank=rank, world_size=world_size, order={"policy": policy})
            with closing(loader.stream(state, 2, table)) as stream:
                streams.append([(b.sample_ids.tolist(), b.state) for b in stream])
        return [
            (list(chain(*(ids for ids, _ in parts))), parts[0][1])
            for parts in zip(*streams, strict=True)
        ]

    table = None
    if policy == "hard":
        split = Split.open(built, "train")
        near = nearest_by_position(split, 8, range(len(split)))
        sha256 = neighbours.save(tmp_path, [near], near.shape)
        table = NeighbourTable.load(tmp_path, sha256)
    undisturbed = of_all_ranks(start(built), before)
    state = undisturbed[13][1]  # in the middle of the second epoch
    assert state.table_hash == ("" if table is None else table.sha256)
    assert of_all_ranks(state, after) == undisturbed[14:]


def test_timing_does_not_change_the_order(built, train, monkeypatch, start, ids):
    expected = ids(train(built), start(built))
    honest, rng = Reader.read, np.random.default_rng()

    def slow(self, sample_id, part):
        time.sleep(rng.random() * 0.01)
        return honest(self, sample_id, part)

    monkeypatch.setattr(Reader, "read", slow)
    for threads, ahead in ((1, 1), (7, 3), (3, 20)):
        loader = train(built, read_threads=threads, read_ahead=ahead)
        assert ids(loader, start(built)) == expected


def test_closing_ends_all_threads(built, train, start, data_threads):
    stream = train(built).stream(start(built), 5)
    next(stream)
    assert data_threads()
    stream.close()
    assert data_threads() == []


def test_garbage_ends_all_threads(built, train, start, data_threads):
    stream = train(built).stream(start(built), 5)
    next(stream)
    del stream
    gc.collect()
    assert data_threads() == []


def test_an_exception_in_a_thread_arrives_as_itself(
    built, train, monkeypatch, start, raising, data_threads
):
    class SurpriseError(Exception):
        pass

    monkeypatch.setattr(Reader, "read", raising(SurpriseError()))
    with pytest.raises(SurpriseError):
        next(train(built).stream(start(built), 1))
    gc.collect()
    assert data_threads() == []


def test_an_image_that_does_not_decode_is_named(built, train, monkeypatch, start):
    monkeypatch.setattr(Reader, "read", lambda *_: b"no image at all")
    with pytest.raises(DataError, match=r"does not decode: train-0000\d+, train-0000\d+.*\.$"):
        next(train(built, global_batch=2).stream(start(built), 1))


def test_a_held_batch_stays(built, train, start):
    held = [
        (batch, {view: images.clone() for view, images in batch.images.items()})
        for batch in train(built).stream(start(built), 2)
    ]
    for batch, copies in held:
        assert all(torch.equal(batch.images[view], copy) for view, copy in copies.items())


def test_half_copied_shards_are_refused_at_the_start(shards, train, evaluation):
    tar = Split.open(shards, "train").tar(20)
    with tar.open("r+b") as file:
        file.truncate(1024)
    with pytest.raises(DataError, match=f"1 of 3 tars .* {tar}: 20 samples .*max_quarantined=19"):
        train(shards, max_quarantined=19)
    train(shards, max_quarantined=20)
    with pytest.raises(DataError, match="max_missing=0"):
        evaluation(shards, split="train")


def test_storage_that_fails_for_a_while_changes_nothing(built, train, monkeypatch, start, ids):
    expected = ids(train(built), start(built))
    honest, failures = tars_module.os.pread, iter([True] * 40)
    rng = np.random.default_rng(0)

    def flaky(descriptor, size, offset):
        if rng.random() < 0.3 and next(failures, False):
            raise OSError(5, "Input/output error")
        return honest(descriptor, size, offset)

    monkeypatch.setattr(tars_module.os, "pread", flaky)
    monkeypatch.setattr(tars_module, "RETRY_DELAYS_SECONDS", (0.001,) * 41)
    assert ids(train(built), start(built)) == expected


def test_storage_that_stays_away_ends_the_run(built, train, monkeypatch, start, ids, raising):
    monkeypatch.setattr(tars_module, "RETRY_DELAYS_SECONDS", (0.001, 0.001))
    monkeypatch.setattr(tars_module.os, "pread", raising(OSError(116, "Stale file handle")))
    with pytest.raises(DataError, match=r"\.tar can't be read \(Stale file handle\)"):
        ids(train(built), start(built))


def test_closing_does_not_wait_for_storage(built, train, monkeypatch, start, raising, data_threads):
    loader = train(built, read_ahead=8)
    stream = loader.stream(start(built), 5)
    next(stream)
    monkeypatch.setattr(tars_module, "RETRY_DELAYS_SECONDS", (60.0,))
    monkeypatch.setattr(tars_module.os, "pread", raising(OSError(5, "Input/output error")))
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


def test_a_state_of_another_run_is_refused(built, train, start):
    loader = train(built)
    good = start(built)
    for state, message in [
        (DataState("0" * 64, 3, 0, 0), "other shards"),
        (DataState(good.manifest_hash, 4, 0, 0), "seed 4, not 3"),
        (DataState(good.manifest_hash, 3, 0, 10), "10 samples .* not a multiple of .* 6"),
    ]:
        with pytest.raises(DataInputError, match=message):
            loader.stream(state, 1)
