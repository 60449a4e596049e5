"""Real processes, killed while they build: what is finished stays, and the rest is the same."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from data_shards.build.dataset import build
from data_shards.build.finalize import finalize
from data_shards.format.plan import BuildOptions
from data_shards.sources.folder import FolderSource

pytestmark = pytest.mark.slow  # starts processes, or imports what others ship

ROWS, PER_SHARD = 240, 4


@pytest.fixture
def raw(tmp_path, make_folder):
    return make_folder(tmp_path / "raw", ROWS, size=256)


def start(raw, out, *more, workers=2, per_shard=PER_SHARD, **options):
    command = [sys.executable, "-m", "data_shards", "build", "folder", "--workers", workers]
    arguments = ["--root", raw, "--out", out, "--samples-per-shard", per_shard, *more]
    return subprocess.Popen(
        [str(word) for word in [*command, *arguments]],
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def parts(out):
    return len(list(out.glob("*/*.parquet")))


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)


def processes_writing_to(out):
    """Ids of the processes that have a file open below `out`."""
    found = set()
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):  # it has ended meanwhile
            if any(link.readlink().is_relative_to(out) for link in descriptors.iterdir()):
                found.add(int(descriptors.parent.name))
    return found


def test_killed_anywhere_the_bytes_are_the_same(raw, tmp_path, read_files):
    out, rng = tmp_path / "killed", random.Random(7)
    for stop in (signal.SIGKILL, signal.SIGTERM):
        before = parts(out)
        process = start(raw, out)
        goal = before + rng.randint(1, 12)
        wait_for(
            lambda goal=goal, process=process: parts(out) >= goal or process.poll() is not None
        )
        time.sleep(rng.random() * 0.02)
        process.send_signal(stop)
        error = process.communicate(timeout=60)[1]
        wait_for(lambda: not processes_writing_to(out), seconds=10)
        assert goal <= parts(out) < ROWS // PER_SHARD
        assert not (out / "manifest.json").exists()
        if stop == signal.SIGTERM:
            assert process.returncode == 75
            sentence = error.strip().splitlines()[-1]
            assert sentence.startswith("Stopped with ")
            assert f"of {ROWS // PER_SHARD} shards finished" in sentence
    options = BuildOptions(samples_per_shard=PER_SHARD)
    build(FolderSource(raw), out, options, workers=1)
    build(FolderSource(raw), tmp_path / "undisturbed", options, workers=1)
    assert read_files(out) == read_files(tmp_path / "undisturbed")


def test_a_killed_worker_is_one_sentence(raw, tmp_path):
    out = tmp_path / "out"
    process = start(raw, out)
    wait_for(lambda: parts(out) >= 1 or process.poll() is not None)
    victims = set()
    wait_for(lambda: victims.update(processes_writing_to(out) - {process.pid}) or victims)
    os.kill(victims.pop(), signal.SIGKILL)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert error.strip().splitlines()[-1].startswith("A worker process was killed, most often")
    assert "Traceback" not in error


@pytest.mark.full
def test_ten_kills_a_job_array_and_one_quiet_build_write_the_same_2000_pairs(
    tmp_path, make_folder, read_files
):
    raw, rng = make_folder(tmp_path / "raw2000", 2000), random.Random(11)
    killed, shards = tmp_path / "killed", 200
    moments = []
    for kill in range(10):
        process = start(raw, killed, workers=1 + kill % 3, per_shard=10, start_new_session=True)
        # Three kills at any moment from the start, the others when some more shards are finished.
        goal = 0 if kill < 3 else min(parts(killed) + rng.randint(0, 18), 140)
        wait_for(lambda goal=goal, process=process: parts(killed) >= goal or process.poll())
        time.sleep(rng.random() * (3 if goal == 0 else 0.2))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        moments.append(parts(killed))
        wait_for(lambda: not processes_writing_to(killed), seconds=10)
        assert not (killed / "manifest.json").exists()
    assert moments == sorted(moments)
    assert 0 < moments[-1] < shards
    # And one when every shard is finished, while or before it is finalized.
    process = start(raw, killed, workers=3, per_shard=10, start_new_session=True)
    wait_for(lambda: parts(killed) == shards)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    options = BuildOptions(samples_per_shard=10)
    build(FolderSource(raw), killed, options, workers=2)

    array = tmp_path / "array"
    tasks = [start(raw, array, "--task", f"{k}/3", workers=1, per_shard=10) for k in range(3)]
    assert [task.communicate(timeout=120) and task.returncode for task in tasks] == [0, 0, 0]
    assert not (array / "manifest.json").exists()
    finalize(array)

    quiet = tmp_path / "quiet"
    manifest = build(FolderSource(raw), quiet, options, workers=1)
    assert manifest.splits["train"].samples == 1998
    assert read_files(killed) == read_files(quiet)
    assert read_files(array) == read_files(quiet)
