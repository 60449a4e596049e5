import os
import signal
import subprocess
import sys
import time

import pytest

from data_shards.base.atomic import (
    OTHER_HOST_SECONDS,
    atomic_file,
    remove_leftovers,
    unpublished_folder,
    write_atomic,
)

WRITER = """
import sys, time
from pathlib import Path
from data_shards.base.atomic import atomic_file
with atomic_file(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(99)
"""


def test_an_exception_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail():
        with atomic_file(path) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_not_there_before_the_block_ends(tmp_path):
    path = tmp_path / "file"
    with atomic_file(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"


def test_leftovers_of_killed_processes_go(tmp_path):
    (tmp_path / "train").mkdir()
    kept = tmp_path / "train" / "train-000000.tar"
    for path in (kept, tmp_path / "manifest.json.1.tmp", kept.with_name("x.tar.77.tmp")):
        path.touch()
    remove_leftovers(tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [kept]


def test_files_of_other_names_stay(tmp_path):
    others = [tmp_path / name for name in ("notes.tmp", "a.tar.tmp", "x.tar.zz.tmp", ".tmp")]
    for path in others:
        path.touch()
    folder = tmp_path / "a.tar.1.tmp"
    folder.symlink_to(tmp_path)
    remove_leftovers(tmp_path)
    assert all(path.exists() for path in [*others, folder])
    remove_leftovers(tmp_path / "nowhere")


def test_what_is_being_written_stays_and_what_a_killed_process_wrote_goes(tmp_path):
    """Writers in this process and in another one, which is killed."""
    (tmp_path / "train").mkdir()
    other = "import sys, time; from pathlib import Path\n"
    other += "from data_shards.base.atomic import atomic_file\n"
    other += (
        "with atomic_file(Path(sys.argv[1])) as file: print('ready', flush=True); time.sleep(99)"
    )
    command = [sys.executable, "-c", other, str(tmp_path / "train" / "train-000001.tar")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"ready\n"
        with atomic_file(tmp_path / "train" / "train-000000.tar") as file:
            file.write(b"new")
            before = sorted(tmp_path.rglob("*.tmp"))
            remove_leftovers(tmp_path)
            assert sorted(tmp_path.rglob("*.tmp")) == before
            assert len(before) == 2
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    remove_leftovers(tmp_path)
    assert [path.name for path in (tmp_path / "train").iterdir()] == ["train-000000.tar"]
    assert (tmp_path / "train" / "train-000000.tar").read_bytes() == b"new"


def test_what_another_host_may_be_writing_goes_only_when_it_is_old(tmp_path):
    path = tmp_path / f"manifest.json.{'0' * 16}.tmp"
    path.touch()
    remove_leftovers(tmp_path)
    assert path.exists()
    old = time.time() - OTHER_HOST_SECONDS - 1
    os.utime(path, (old, old))
    remove_leftovers(tmp_path)
    assert not path.exists()


def test_an_unpublished_folder_is_our_own_and_leaves_nothing(tmp_path):
    users = tmp_path / "model.tmp"
    users.mkdir()
    with pytest.raises(RuntimeError), unpublished_folder(tmp_path / "model") as failed:
        raise RuntimeError
    failed.mkdir()  # as a killed process leaves it
    with unpublished_folder(tmp_path / "model") as folder:
        with unpublished_folder(tmp_path / "model"):
            assert folder.is_dir()  # a live one stays
        assert not failed.exists()
        folder.rename(tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.tmp"]
