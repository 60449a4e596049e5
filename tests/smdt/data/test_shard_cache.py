"""The cache: right bytes, each file once, never more than it may hold, nothing left of the dead."""

import hashlib
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_shards.base.errors import DataError, DataInputError, StoreError
from data_shards.base.store import location
from smdt.data import shard_cache
from smdt.data.shard_cache import CacheConfig, ShardCache

KILOBYTE = 1e-6  # in gigabytes


def content(number: int, size: int = 1000) -> bytes:
    return np.random.default_rng(number).bytes(size)


def name(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


class Store:
    """Stands in for `download`: file n has the bytes of `content`; counts what it gave."""

    def __init__(self) -> None:
        self.given: list[int] = []
        self.size = 1000
        self.wait_seconds = 0.0
        self.error: Exception | None = None

    def download(self, stored, to: Path, pause) -> None:
        number = int(stored.name)
        self.given.append(number)
        with to.open("wb") as file:
            file.write(content(number, self.size)[: self.size // 2])
            time.sleep(self.wait_seconds)
            if self.error is not None:
                raise self.error
            file.write(content(number, self.size)[self.size // 2 :])


@pytest.fixture
def store(monkeypatch) -> Store:
    fake = Store()
    monkeypatch.setattr(shard_cache, "download", fake.download)
    return fake


def read(cache: ShardCache, number: int, size: int = 1000) -> bytes:
    stored = location(f"memory://data/{number}")
    with cache.open(stored, name(number), size, time.sleep) as file:
        return file.read()


def test_files_of_the_users_in_the_folder_stay(store, tmp_path):
    users = [tmp_path / name for name in ("weights.bin", "notes.reserved", "0.partial")]
    for path in users:
        path.write_bytes(bytes(2000))
    (tmp_path / "folder").mkdir()
    cache = ShardCache(CacheConfig(folder=str(tmp_path), gigabytes=KILOBYTE))
    for number in range(3):
        assert read(cache, number) == content(number)
    assert all(path.exists() for path in users)


def held_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_a_file_is_downloaded_once_for_all_threads_and_openings(store, tmp_path):
    store.wait_seconds = 0.05
    caches = [ShardCache(CacheConfig(folder=str(tmp_path))) for _ in range(2)]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda i: read(caches[i % 2], i % 4), range(64)))
    assert found == [content(i % 4) for i in range(64)]
    assert sorted(store.given) == [0, 1, 2, 3]
    assert {path.name for path in tmp_path.iterdir()} == {"lock", *(name(i) for i in range(4))}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=st.lists(st.integers(0, 5), max_size=30), room=st.integers(1, 4))
def test_what_was_used_longest_ago_makes_room(store, tmp_path_factory, wanted, room):
    folder = tmp_path_factory.mktemp("cache")
    cache = ShardCache(CacheConfig(folder=str(folder), gigabytes=room * KILOBYTE))
    store.given.clear()
    model, downloads = [], []  # the last used is last
    for tick, number in enumerate(wanted):
        assert read(cache, number) == content(number)
        os.utime(folder / name(number), (tick, tick))  # a clock that ticks between two openings
        if number in model:
            model.remove(number)
        else:
            downloads.append(number)
        model = [*model, number][-room:]
        assert {path.name for path in folder.iterdir()} == {"lock", *map(name, model)}
        assert held_bytes(folder) <= room * 1000
    assert store.given == downloads


def test_many_threads_share_room_for_one_file(store, tmp_path):
    cache = ShardCache(CacheConfig(folder=str(tmp_path), gigabytes=1.5 * KILOBYTE))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: read(cache, i % 3), range(24)))
    assert found == [content(i % 3) for i in range(24)]
    assert held_bytes(tmp_path) <= 1500


def test_a_file_that_is_being_read_survives_eviction(store, tmp_path):
    cache = ShardCache(CacheConfig(folder=str(tmp_path), gigabytes=KILOBYTE))
    with cache.open(location("memory://data/1"), name(1), 1000, time.sleep) as file:
        read(cache, 2)
        assert not (tmp_path / name(1)).exists()
        assert file.read() == content(1)


def test_a_dropped_file_is_downloaded_again(store, tmp_path):
    cache = ShardCache(CacheConfig(folder=str(tmp_path)))
    read(cache, 1)
    (tmp_path / name(1)).write_bytes(b"bad")
    assert read(cache, 1) == b"bad"
    cache.drop(name(1))
    assert read(cache, 1) == content(1)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (StoreError("s3://b/x is out of reach."), DataError, "out of reach"),
        (FileNotFoundError(), FileNotFoundError, None),
        (OSError(28, "No space left on device"), DataError, "No space left.*data.cache.folder"),
    ],
)
def test_a_download_that_fails_leaves_nothing(store, tmp_path, error, kind, message):
    cache = ShardCache(CacheConfig(folder=str(tmp_path)))
    store.error = error
    with pytest.raises(kind, match=message):
        read(cache, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    store.error = None
    assert read(cache, 1) == content(1)


def test_a_file_larger_than_the_cache_is_refused(store, tmp_path):
    cache = ShardCache(CacheConfig(folder=str(tmp_path), gigabytes=0.5 * KILOBYTE))
    with pytest.raises(DataInputError, match=r"may hold 5e-07 GB.*raise data\.cache\.gigabytes"):
        read(cache, 1)


def test_a_folder_that_cannot_be_made_is_the_users_mistake(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataInputError, match=r"file/x can't be made.*data\.cache\.folder"):
        ShardCache(CacheConfig(folder=str(tmp_path / "file/x")))


def test_a_stop_ends_the_waiting_for_another_download(store, tmp_path):
    cache = ShardCache(CacheConfig(folder=str(tmp_path)))
    store.wait_seconds = 0.5
    stopping = Event()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(read, cache, 1)
        while not store.given:
            time.sleep(0.01)
        stored = location("memory://data/1")
        second = pool.submit(cache.open, stored, name(1), 1000, stopping.wait)
        stopping.set()
        with pytest.raises(DataError, match="Stopped waiting"):
            second.result(timeout=0.4)
        assert first.result() == content(1)


def _download_for_ever(folder: str, begun) -> None:
    def hang(stored, to: Path, pause) -> None:
        to.write_bytes(b"half")
        begun.set()
        time.sleep(1000)

    shard_cache.download = hang
    read(ShardCache(CacheConfig(folder=folder, gigabytes=2 * KILOBYTE)), 1, 1500)


@pytest.mark.slow
def test_what_a_killed_process_was_downloading_takes_no_room(store, tmp_path):
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    killed = context.Process(target=_download_for_ever, args=(str(tmp_path), begun))
    killed.start()
    assert begun.wait(120)
    assert (tmp_path / f"{name(1)}.reserved").stat().st_size == 1500
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    cache = ShardCache(CacheConfig(folder=str(tmp_path), gigabytes=2 * KILOBYTE))
    assert read(cache, 2) == content(2)
    assert {path.name for path in tmp_path.iterdir()} == {"lock", name(2)}
    assert read(cache, 1) == content(1)


def test_downloads_wait_for_the_room_that_others_have_reserved(store, tmp_path):
    cache = ShardCache(CacheConfig(folder=str(tmp_path), gigabytes=2.5 * KILOBYTE))
    store.wait_seconds = 0.1
    together = Barrier(4)

    def work(number: int) -> bytes:
        together.wait()
        return read(cache, number)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(4)))
    assert found == [content(number) for number in range(4)]
    assert held_bytes(tmp_path) <= 2500
