"""A build on a real Ray cluster of two nodes (two_nodes.py)."""

import os
import signal
import subprocess
import sys
import time

import pytest

from data_shards.base.atomic import OTHER_HOST_SECONDS
from data_shards.base.errors import InputError
from data_shards.build.dataset import build
from data_shards.build.finalize import finalize
from data_shards.build.ray_executor import RayExecutor
from data_shards.format.plan import BuildOptions
from data_shards.sources.folder import FolderSource
from tests.data_shards.two_nodes import ADDRESS, two_nodes
from tests.namespaces import require_namespaces

pytestmark = pytest.mark.slow

OPTIONS = BuildOptions(samples_per_shard=10)

DRIVER = """
import logging, sys
logging.basicConfig(filename=sys.argv.pop(1), format="%(message)s")
logging.getLogger("data_shards").setLevel(logging.DEBUG)
from data_shards.cli import app
from data_shards.base.errors import run
run(app)
"""


@pytest.fixture(scope="module")
def cluster():
    require_namespaces()
    with two_nodes() as nodes:
        yield nodes


def start(head, raw, out, log):
    """The command line on the head, with the executor's log in a file."""
    arguments = ["build", "folder", "--root", raw, "--out", out, "--samples-per-shard", 10]
    ray = ["--executor", "ray", "--address", ADDRESS]
    command = [sys.executable, "-c", DRIVER, log, *arguments, *ray]
    return subprocess.Popen(
        head.command([str(word) for word in command]), stderr=subprocess.PIPE, text=True
    )


def nodes_in(log):
    """The node of every task that ended, in order."""
    return [line.split()[-1] for line in log.read_text().splitlines() if "ended on node" in line]


def parts(out):
    return len(list(out.glob("*/*.parquet")))


def wait_for_parts(out, count, process):
    while parts(out) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_two_nodes_write_what_one_machine_writes(
    cluster, make_folder, tmp_path, read_files, monkeypatch
):
    out, log = tmp_path / "ray", tmp_path / "log"
    make_folder(tmp_path / "raw", 400)
    monkeypatch.chdir(tmp_path)  # the folder that relative paths start from, on every node
    process = start(cluster[0], "raw", "ray", log)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 0, error
    assert "Traceback" not in error
    assert len(nodes_in(log)) == 40
    assert len(set(nodes_in(log))) == 2
    build(FolderSource(tmp_path / "raw"), tmp_path / "local", OPTIONS, workers=1)
    assert read_files(out) == read_files(tmp_path / "local")


@pytest.mark.full
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_driver_stops_the_nodes(cluster, make_folder, tmp_path, stop):
    raw, out = make_folder(tmp_path / "raw", 2000), tmp_path / "ray"
    process = start(cluster[0], raw, out, tmp_path / "log")
    wait_for_parts(out, 10, process)
    process.send_signal(stop)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 75, error
    assert error.strip().splitlines()[-1].startswith("Stopped with ")
    time.sleep(2)
    finished = parts(out)
    time.sleep(3)
    assert parts(out) == finished < 200


@pytest.mark.full
def test_a_lost_node_loses_no_shard(cluster, make_folder, tmp_path, read_files):
    """The last test of this file: it leaves a cluster of one node."""
    raw, out, log = make_folder(tmp_path / "raw", 2000), tmp_path / "ray", tmp_path / "log"
    process = start(cluster[0], raw, out, log)
    wait_for_parts(out, 40, process)
    cluster[1].kill()
    error = process.communicate(timeout=300)[1]
    assert process.returncode == 0, error
    nodes = nodes_in(log)
    assert len(nodes) == 200
    assert len(set(nodes)) == 2
    assert len(set(nodes[100:])) == 1
    build(FolderSource(raw), tmp_path / "local", OPTIONS, workers=2)
    forget_the_lost_node(out)
    assert read_files(out) == read_files(tmp_path / "local")


def forget_the_lost_node(out):
    """Finalize again when what the lost node was writing is old enough to be nobody's."""
    old = time.time() - OTHER_HOST_SECONDS - 1
    for unfinished in out.rglob("*.tmp"):
        os.utime(unfinished, (old, old))
    finalize(out)


def test_a_cluster_that_does_not_answer_is_one_sentence(monkeypatch):
    monkeypatch.setattr("data_shards.build.ray_executor.ANSWER_SECONDS", 3)
    with pytest.raises(InputError, match=r"No Ray cluster answers at 127\.0\.0\.1:9: give"):
        RayExecutor("127.0.0.1:9")


def test_without_ray_the_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'smdt\[ray\]'"):
        RayExecutor(ADDRESS)
