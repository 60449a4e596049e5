"""Bytes by offset: right or damaged, never wrong, from few open files and any thread."""

import gc
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from data_shards.base.errors import DataError
from smdt.data import tars as tars_module
from smdt.data.reader import DamagedPart, Reader
from smdt.data.split import Split
from smdt.telemetry.metrics import TrainingMetrics


@pytest.fixture
def read_from():
    """Make a reader of split `train` that never waits long."""

    def make(root, stopping=None) -> Reader:
        metrics = TrainingMetrics("test", "data", 0)
        return Reader(Split.open(root, "train"), metrics, stopping or Event())

    return make


@pytest.fixture
def source_bytes(built):
    """The parts of each sample, cut from the tar by the index."""
    split = Split.open(built, "train")

    def of(sample_id: int, part: str) -> bytes:
        start, size = (split.column(f"{part}_{name}")[sample_id] for name in ("offset", "size"))
        return split.tar(sample_id).read_bytes()[start : start + size]

    return of


def open_tars(root: Path) -> int:
    """Descriptors of this process that lead to files below `root`."""
    gc.collect()  # readers of earlier tests keep theirs until then
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # others of this process open and close files meanwhile
            count += descriptor.readlink().is_relative_to(root)
    return count


def test_every_part_is_read_from_many_threads(built, read_from, source_bytes, monkeypatch):
    """Even when fewer files than shards may stay open."""
    monkeypatch.setattr(tars_module, "OPEN_FILES", 1)
    reader, before = read_from(built), open_tars(built)
    wanted = [(i % 60, part) for i in range(600) for part in ("ground", "aerial")]
    wanted = [wanted[i] for i in np.random.default_rng(0).permutation(len(wanted))]
    with ThreadPoolExecutor(8) as pool:
        read = [pool.submit(reader.read, *each) for each in wanted]
    assert all(
        data.result() == source_bytes(*each) for data, each in zip(read, wanted, strict=True)
    )
    assert open_tars(built) <= before + 1
    del reader
    assert open_tars(built) <= before


def test_any_flipped_byte_is_found(shards, read_from, flip_byte):
    flip_byte(Split.open(shards, "train"), 11, "ground")
    reader = read_from(shards)
    with pytest.raises(DamagedPart, match=r"train-000000\.tar fail their checksum") as caught:
        reader.read(11, "ground")
    assert (caught.value.part, caught.value.reason) == ("ground", "checksum")
    reader.read(11, "aerial")


def test_a_truncated_tar_has_its_first_samples(shards, read_from, source_bytes):
    split = Split.open(shards, "train")
    with split.tar(0).open("r+b") as file:
        file.truncate(split.column("aerial_offset")[10] + 5)
    reader = read_from(shards)
    assert reader.read(9, "aerial") == source_bytes(9, "aerial")
    for sample_id in (10, 19):
        with pytest.raises(DamagedPart) as caught:
            reader.read(sample_id, "aerial")
        assert caught.value.reason == "truncated"


def test_a_missing_tar_is_damage_but_a_missing_folder_is_not(shards, read_from, monkeypatch):
    monkeypatch.setattr(tars_module, "RETRY_DELAYS_SECONDS", (0.001,))
    reader = read_from(shards)
    (shards / "train" / "train-000001.tar").unlink()
    with pytest.raises(DamagedPart, match="does not exist") as caught:
        reader.read(25, "ground")
    assert caught.value.reason == "missing"
    (shards / "train").rename(shards / "elsewhere")
    with pytest.raises(DataError, match=r"No such file.*storage reachable"):
        reader.read(45, "ground")


def test_storage_is_asked_again(built, read_from, source_bytes, monkeypatch):
    monkeypatch.setattr(tars_module, "RETRY_DELAYS_SECONDS", (0.001,) * 3)
    answers = iter([OSError(5, "Input/output error"), OSError(116, "Stale file handle"), None])
    honest = os.pread

    def pread(*arguments):
        answer = next(answers, None)
        if answer is not None:
            raise answer
        return honest(*arguments)

    monkeypatch.setattr(tars_module.os, "pread", pread)
    assert read_from(built).read(3, "ground") == source_bytes(3, "ground")


def test_short_reads_are_joined(built, read_from, source_bytes, monkeypatch):
    honest = os.pread
    monkeypatch.setattr(
        tars_module.os, "pread", lambda fd, size, offset: honest(fd, min(size, 100), offset)
    )
    assert read_from(built).read(3, "ground") == source_bytes(3, "ground")


def test_a_stop_ends_the_waiting(built, read_from, monkeypatch):
    monkeypatch.setattr(tars_module, "RETRY_DELAYS_SECONDS", (60.0,))
    stopping = Event()
    reader = read_from(built, stopping)
    stopping.set()

    def pread(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(tars_module.os, "pread", pread)
    with pytest.raises(DataError, match="Input/output error"):
        reader.read(0, "ground")
