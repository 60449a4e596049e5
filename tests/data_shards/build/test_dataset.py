import json
import multiprocessing
import signal

import pytest

from data_shards.base.errors import ShardError, Stopped
from data_shards.build.dataset import build, build_share, finish
from data_shards.build.finalize import finalize
from data_shards.build.job_array import ArrayTask
from data_shards.build.progress import BuildCallback, Work
from data_shards.format.index import read_table
from data_shards.format.manifest import load
from data_shards.format.plan import BuildOptions
from data_shards.sources.folder import FolderSource

OPTIONS = BuildOptions(samples_per_shard=3)


class Listener(BuildCallback):
    def __init__(self):
        self.work, self.rows = [], 0

    def begin(self, work):
        self.work.append(work)

    def advance(self, rows):
        self.rows += rows


@pytest.mark.slow
def test_one_worker_and_two_write_the_same_bytes(folder, tmp_path, read_files):
    again, watchers = tmp_path / "two", [Listener(), Listener()]
    build(FolderSource(folder), tmp_path / "one", OPTIONS, workers=1, watchers=watchers)
    build(FolderSource(folder), again, OPTIONS, workers=2, watchers=watchers)
    assert read_files(tmp_path / "one") == read_files(again)
    assert [listener.rows for listener in watchers] == [2 * 12] * 2


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
    listener = Listener()
    build(source, out, OPTIONS, workers=1, watchers=[listener])
    assert read_files(out) == before
    assert listener.work == [Work(shards=6, shards_done=4, rows=14, rows_done=8)]
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
    with pytest.raises(ShardError, match=r"1 of 4 shards of train \(2\)"):
        finalize(out)


def test_a_full_disk_is_one_sentence(memory_source, tmp_path, monkeypatch):
    calls = iter(range(99))

    def sync(_descriptor):
        if next(calls) >= 2:  # the plan's file and folder came through
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("data_shards.base.atomic.os.fsync", sync)
    with pytest.raises(ShardError, match=r"train-000000\.tar can't be written: No space left"):
        build(memory_source(), tmp_path / "out", OPTIONS, workers=1)
    assert not list((tmp_path / "out").rglob("*.tmp"))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_tasks_of_an_array_write_what_one_build_writes(
    memory_source, tmp_path, read_files, order
):
    source, out = memory_source(rejected=frozenset({2})), tmp_path / "array"
    build(source, tmp_path / "one", OPTIONS, workers=1)
    left = []
    for k in order:
        with pytest.raises(ShardError, match=r"Not built yet: .* shards of train"):
            finalize(out) if left else finalize_begun(source, out)
        left.append(build_share(source, out, OPTIONS, ArrayTask(k, 3), workers=1))
    assert left == [4, 2, 0]
    finalize(out)
    assert read_files(out) == read_files(tmp_path / "one")


def finalize_begun(source, out):
    """Finalize what no task has written to: one of more tasks than shards only claims it."""
    assert build_share(source, out, OPTIONS, ArrayTask(9, 10), workers=1) == 6
    finalize(out)


def build_when_all_are_here(barrier, source, out, k):
    barrier.wait()  # two of the four write the same shards
    build_share(source, out, OPTIONS, ArrayTask(k % 2, 2), workers=1)


@pytest.mark.slow
def test_tasks_that_start_at_once_agree(memory_source, tmp_path, read_files):
    source, out = memory_source(), tmp_path / "array"
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads can hang
    barrier = context.Barrier(4)
    processes = [
        context.Process(target=build_when_all_are_here, args=(barrier, source, out, k))
        for k in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    finish(out)
    build(source, tmp_path / "one", OPTIONS, workers=1)
    assert read_files(out) == read_files(tmp_path / "one")


def test_shards_that_went_elsewhere_are_not_taken_for_written(memory_source, tmp_path):
    def elsewhere(function, tasks, workers, advance, preload=()):
        (root, *_), write = function.args[2:], function.func
        hidden = tmp_path / "other"
        (hidden / "train").mkdir(parents=True)
        (hidden / "val").mkdir()
        assert root == tmp_path / "out"
        yield from (write(*function.args[:2], hidden, task, advance) for task in tasks)

    with pytest.raises(ShardError, match=r"train-000000\.parquet was written on another node"):
        build(memory_source(), tmp_path / "out", OPTIONS, executor=elsewhere)


class SwallowsInterrupts(BuildCallback):
    """Asks the process to stop at a moment when Python drops the exception."""

    def finish(self, summary):
        class Dropped:
            def __del__(self):
                signal.raise_signal(self.number)

        dropped = Dropped()
        dropped.number = signal.SIGTERM


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stop_is_never_lost(memory_source, tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    out, watchers = tmp_path / "out", [SwallowsInterrupts()]
    with pytest.raises(Stopped, match="Stopped with 1 of 6 shards finished"):
        build(memory_source(), out, OPTIONS, workers=1, watchers=watchers)
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
