"""Data sets in a store: the same bytes as in a folder, whatever the store does meanwhile."""

import json
import subprocess
import sys
import threading
import time

import pytest

from data_shards.base import store
from data_shards.base.atomic import atomic_file, write_atomic
from data_shards.base.errors import InputError, StoreError
from data_shards.base.store import location, retry
from data_shards.build.dataset import build
from data_shards.build.finalize import finalize
from data_shards.format.manifest import load
from data_shards.format.plan import BuildOptions
from data_shards.inspect.sheet import contact_sheet
from data_shards.inspect.stats import stats
from data_shards.inspect.verify import verify
from tests.store import KEY_ID, SECRET

pytestmark = pytest.mark.slow  # a server answers for the store

OPTIONS = BuildOptions(samples_per_shard=4)


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAUSER:hunter2@bucket/x",
        "https://user@host/x",
        "https://bucket.host/x?X-Amz-Signature=hunter2",
    ],
)
def test_an_address_with_credentials_is_refused_without_repeating_them(url):
    with pytest.raises(InputError, match="leave credentials") as caught:
        location(url)
    assert "hunter2" not in str(caught.value)
    assert "AKIAUSER" not in str(caught.value)


def test_paths_stay_paths(tmp_path):
    assert location(str(tmp_path)) == tmp_path
    assert location(tmp_path) is tmp_path
    assert location(f"file://{tmp_path}") == tmp_path


def test_protocols_are_not_chained():
    with pytest.raises(InputError, match="'::' is not supported") as caught:
        location("simplecache::https://user:hunter2@host/x")
    assert "hunter2" not in str(caught.value)


def test_an_unknown_protocol_is_named():
    with pytest.raises(InputError, match="'nosuch'"):
        location("nosuch://bucket/x")


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    opened = sys.modules["fsspec.registry"]._registry  # the package hides its module
    monkeypatch.delitem(opened, "s3", raising=False)
    with pytest.raises(InputError, match=r"s3://bucket/x needs .* pip install 'smdt\[s3\]'"):
        location("s3://bucket/x")


def test_waits_grow_and_end(monkeypatch):
    waits, now = [], [0.0]

    def wait(seconds):
        waits.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(store.time, "monotonic", lambda: now[0])

    def fail():
        raise ConnectionError("https://host/x?X-Amz-Signature=hunter2")

    with pytest.raises(StoreError, match=r"^s3://b/x .* \(ConnectionError\)") as caught:
        retry(fail, location("s3://b/x"), wait)
    assert waits[:4] == [0.1, 0.2, 0.4, 0.8]
    assert max(waits) == 10
    assert 60 < sum(waits) <= 70
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_build_in_a_store_has_the_bytes_of_a_folder(s3, small_set, memory_source, read_files):
    source = memory_source(rejected=frozenset({2}))
    build(source, s3.url, OPTIONS, workers=1)
    assert s3.files(s3.url) == read_files(small_set)
    manifest = location(s3.url) / "manifest.json"
    manifest.unlink()
    finalize(s3.url)
    assert s3.files(s3.url) == read_files(small_set)
    assert load(s3.url) == load(small_set)
    assert stats(s3.url) == stats(small_set)
    assert verify(s3.url, workers=1) == verify(small_set, workers=1)
    assert contact_sheet(s3.url, 2).tobytes() == contact_sheet(small_set, 2).tobytes()


def test_a_build_goes_on_with_the_shards_that_lack(s3, small_set, memory_source, read_files):
    s3.put(small_set, s3.url)
    root = location(s3.url)
    for name in ("manifest.json", "train/train-000001.parquet"):
        (root / name).unlink()
    kept = root.fs.info((root / "train/train-000000.tar").path)["LastModified"]
    build(memory_source(rejected=frozenset({2})), s3.url, OPTIONS, workers=1)
    assert s3.files(s3.url) == read_files(small_set)
    assert root.fs.info((root / "train/train-000000.tar").path)["LastModified"] == kept


def test_verify_names_what_is_damaged_in_a_store(s3, small_set):
    s3.put(small_set, s3.url)
    root = location(s3.url)
    tar = root / "train/train-000000.tar"
    data = bytearray(root.fs.cat_file(tar.path))
    data[700] ^= 1
    root.fs.pipe_file(tar.path, bytes(data))
    (root / "train/train-000001.tar").unlink()
    (root / "val/val-000000.idx").unlink()
    (root / "val/val.arrow").unlink()
    root.fs.pipe_file(f"{root.path}/val/val-000009.tar", b"")
    found = {(d.file, d.reason) for d in verify(s3.url, workers=1).damages}
    assert found == {
        ("train/train-000000.tar", "checksum"),
        ("train/train-000001.tar", "missing"),
        ("val/val-000000.idx", "missing"),
        ("val/val.arrow", "missing"),
        ("val/val-000009.tar", "count"),
    }


@pytest.mark.parametrize("name", ["a b", "a#b", "a%20b", "ä", "a+b", "a=b&c", "a[b]*"])
def test_a_store_takes_every_character_of_a_key_for_itself(s3, name):
    folder = location(f"{s3.url}/{name}/")
    write_atomic(folder / "train-000000.tar", b"data")
    assert s3.files(s3.url) == {f"{name}/train-000000.tar": b"data"}
    assert store.sizes(folder) == {"train-000000.tar": 4}
    assert store.exists(folder / "train-000000.tar")


def test_an_exception_leaves_the_old_file_in_a_store(s3):
    path = location(s3.url) / "file"
    write_atomic(path, b"old")

    def fail():
        with atomic_file(path) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert s3.files(s3.url) == {"file": b"old"}


def test_a_missing_bucket_or_data_set_is_the_users_mistake(s3, memory_source):
    with pytest.raises(InputError, match="the bucket does not exist"):
        build(memory_source(), "s3://no-such-bucket/x", OPTIONS, workers=1)
    with pytest.raises(InputError, match=r"s3://data/nowhere has no manifest\.json"):
        load("s3://data/nowhere")


def test_a_store_that_comes_back_is_waited_for(s3, small_set):
    s3.put(small_set, s3.url)
    s3.proxy.cut()
    threading.Timer(1.0, s3.proxy.mend).start()
    start = time.monotonic()
    assert load(s3.url) == load(small_set)
    assert 0.9 < time.monotonic() - start < 10


def test_a_store_that_stays_away_ends_the_job(s3, small_set, monkeypatch):
    s3.put(small_set, s3.url)
    monkeypatch.setattr(store, "GIVE_UP_SECONDS", 0.5)
    s3.proxy.cut()
    for job in (verify, finalize, stats):
        with pytest.raises(StoreError, match=rf"^{s3.url}\S* is out of reach"):
            job(s3.url)


@pytest.mark.slow
def test_the_commands_take_urls_and_tell_no_secrets(s3, tmp_path):
    """Two workers, each with its own connection."""

    def smdt(*arguments: str) -> str:
        command = [sys.executable, "-m", "data_shards", *arguments, "--json", tmp_path / "x.json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr + (tmp_path / "x.json").read_text()

    size = ("--ground-size", "32x128", "--aerial-size", "64")
    said = smdt("world", "--out", s3.url, "--train", "24", "--val", "8", *size, "--workers", "2")
    said += smdt("verify", s3.url, "--workers", "2")
    assert json.loads((tmp_path / "x.json").read_text())["damages"] == []
    said += smdt("stats", s3.url) + smdt("finalize", s3.url)
    assert "s3://data" in said
    for data in [said.encode(), *s3.files(s3.url).values()]:
        assert KEY_ID.encode() not in data
        assert SECRET.encode() not in data
