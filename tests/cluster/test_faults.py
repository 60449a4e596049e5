"""What happens to runs on many machines, and that each goes on or ends with a sentence in time.

Seconds are bounds of this machine, where starting two ranks takes 20; docs/clusters.md has what
was measured.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from smdt.training.checkpoints import checkpoint
from smdt.training.ranks.lease import LEASE_TIMEOUT_SECONDS
from tests.cluster.launches import (
    ROOT,
    TOTAL,
    Launch,
    assert_same,
    launch_command,
    losses,
    now,
)

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]

SLOW = {"name": "test", "seed": 3, "timeout_seconds": 60}
HANGS = {"name": "test", "seed": 3, "timeout_seconds": 15}


def kill_all(pids, number=signal.SIGKILL):
    assert pids
    for pid in pids:
        os.kill(pid, number)


@pytest.fixture
def disturb(undisturbed, launch, write_config, tmp_path):
    """Start a run, do something to it in its middle, and say how long the attempt took to end."""

    def act(fault: Callable[[Launch], None], *options: str, **sections: dict) -> Launch:
        config = write_config(tmp_path / "run", precision="bf16", **sections)
        started = launch(config, *options)
        started.wait_for(lambda: started.steps >= 11)
        began = now()
        fault(started)
        started.wait_for(lambda: started.say("the attempt ended"))
        print(f"ended after {started.say('the attempt ended') - began:.0f} s")
        return started

    return act


def test_all_processes_of_a_host_killed(disturb, undisturbed, cluster):
    def fault(started):
        kill_all([*started.launchers(cluster.hosts[1]), *started.ranks(cluster.hosts[1])])

    started = disturb(fault)
    assert "the session on b broke off" in started.wait()
    assert started.left() == []
    assert_same(started.run, undisturbed)


def test_deepspeeds_launcher_of_a_host_killed(disturb, undisturbed, cluster):
    started = disturb(lambda started: kill_all(started.launchers(cluster.hosts[1])))
    started.wait()
    assert started.left() == []
    assert_same(started.run, undisturbed)


def test_a_link_cut_for_5_seconds_is_waited_out(
    undisturbed, launch, write_config, cluster, tmp_path
):
    started = launch(write_config(tmp_path / "run", precision="bf16"))
    started.wait_for(lambda: started.steps >= 11)
    cluster.hosts[1].cut()
    time.sleep(5)
    reached = started.steps
    cluster.hosts[1].mend()
    assert reached < TOTAL
    assert "attempt ended" not in started.wait()
    assert_same(started.run, undisturbed)


@pytest.mark.parametrize("back", [False, True], ids=["for good", "for long"])
def test_a_host_out_of_reach_is_left_out_and_the_run_goes_on(
    launch, write_config, cluster, tmp_path, back
):
    sections = {"model": {"dropout": 0.0, "width": 64, "layers": 2}}
    alone = launch(write_config(tmp_path / "alone", **sections), include="a")
    alone.wait()
    started = launch(write_config(tmp_path / "run", **sections))
    started.wait_for(lambda: started.steps >= 5)
    cluster.hosts[1].cut()
    if back:
        started.wait_for(lambda: started.say("left out: b"))
        cluster.hosts[1].mend()
    output = started.wait()
    assert "the session on b broke off" in output
    assert "left out: b" in output
    assert "1 ranks on a" in output
    log = (started.run.logs / "rank-00000.log").read_text()
    assert "was written by another number of ranks" in log
    assert losses(started.run) == pytest.approx(losses(alone.run), rel=1e-4)
    cluster.hosts[1].mend()
    deadline = time.monotonic() + LEASE_TIMEOUT_SECONDS
    while started.left():
        assert time.monotonic() < deadline, started.left()
        time.sleep(0.5)


def test_a_stopped_rank_is_waited_for_until_the_timeout(disturb, undisturbed, cluster, tmp_path):
    def fault(started):
        kill_all(started.ranks(cluster.hosts[1]), signal.SIGSTOP)

    started = disturb(fault, run=HANGS | {"out": str(tmp_path / "run")})
    output = started.wait()
    assert "a rank waited for another one until run.timeout_seconds were over" in output
    assert started.left() == []
    assert_same(started.run, undisturbed)


def test_when_all_ranks_hang_nothing_moves(disturb, undisturbed, cluster):
    def fault(started):
        kill_all([pid for host in cluster.hosts for pid in started.ranks(host)], signal.SIGSTOP)

    started = disturb(fault, "--stall-seconds", "40")
    assert "nothing moved for 4" in started.wait()
    assert started.left() == []
    assert_same(started.run, undisturbed)


@pytest.fixture
def on_small_disk(cluster, tmp_path):
    """Let the checkpoints of the run go to a disk that a ballast can fill."""
    folder = tmp_path / "run"
    folder.mkdir()
    outside = cluster.outside_small / tmp_path.name
    outside.mkdir()
    (folder / "checkpoints").symlink_to(cluster.small / tmp_path.name)
    ballast = cluster.outside_small / "ballast"

    def fill() -> None:
        # Unbuffered: closing a file would write once more what has found no room.
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 16))

    yield fill, ballast
    ballast.unlink(missing_ok=True)
    shutil.rmtree(outside)


def test_a_full_disk_ends_the_attempt_and_the_run_goes_on_when_there_is_room(
    disturb, undisturbed, on_small_disk, cluster
):
    fill, ballast = on_small_disk
    started = disturb(lambda _: fill(), "--max-restarts", "9")
    assert started.say("does not fit on the disk of")
    ballast.unlink()
    started.wait()
    run = started.run
    run.checkpoints = cluster.outside_small / run.root.parent.name
    assert_same(run, undisturbed)


def test_a_disk_that_stays_full_ends_the_run_with_a_sentence(disturb, on_small_disk):
    fill, _ = on_small_disk
    started = disturb(lambda _: fill(), "--max-restarts", "1")
    output = started.wait(exit_code=1)
    assert "does not fit on the disk of" in output.splitlines()[-1]
    assert "1 restarts brought no new checkpoint" in output.splitlines()[-1]
    assert started.left() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=["TERM", "USR1"])
def test_a_host_that_is_told_to_leave_saves(disturb, undisturbed, cluster, number):
    """A scheduler's SIGTERM reaches all processes of a host, its SIGUSR1 the ranks."""

    def fault(started):
        host = cluster.hosts[1]
        others = started.launchers(host) if number == signal.SIGTERM else []
        kill_all([*others, *started.ranks(host)], number)

    started = disturb(fault)
    assert "a host was told to leave; all ranks saved" in started.wait()
    assert_same(started.run, undisturbed)


def test_stopped_on_request_and_a_checkpoint_damaged_since(
    undisturbed, launch, write_config, cluster, tmp_path
):
    config = write_config(tmp_path / "run", precision="bf16")
    started = launch(config)
    started.wait_for(lambda: started.steps >= 11)
    ranks = [pid for host in cluster.hosts for pid in started.ranks(host)]
    kill_all(ranks, signal.SIGSTOP)  # the command takes longer than the rest of the run
    command = launch_command(cluster.hosts[2], "stop", "--config", config)
    subprocess.run(command, cwd=ROOT, check=True)
    kill_all(ranks, signal.SIGCONT)
    assert "start the same command again" in started.wait(exit_code=75)
    assert started.left() == []
    newest, before, *_ = checkpoint.published(started.run.checkpoints)
    assert 11 <= checkpoint.step_of(newest) < TOTAL

    with (newest / checkpoint.WEIGHTS).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    again = launch(config)
    again.wait()
    log = (again.run.logs / "rank-00000.log").read_text()
    assert f"checkpoint {newest} is damaged" in log
    assert min(losses(again.run)) == 1
    assert_same(again.run, undisturbed)
    assert checkpoint.step_of(before) < checkpoint.step_of(newest)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_the_launcher_told_to_stop_by_a_signal(undisturbed, launch, write_config, tmp_path, number):
    config = write_config(tmp_path / "run", precision="bf16")
    started = launch(config)
    started.wait_for(lambda: started.steps >= 11)
    kill_all(started.supervisors(), number)
    assert "start the same command again" in started.wait(exit_code=75)
    launch(config).wait()
    assert_same(started.run, undisturbed)


def test_a_killed_launcher_leaves_no_orphans_and_starts_again(
    undisturbed, launch, write_config, cluster, tmp_path
):
    epochs = {"length": "100 epochs", "warmup_steps": 4}
    started = launch(write_config(tmp_path / "run", schedule=epochs))
    started.wait_for(lambda: started.steps >= 3)
    second = launch(started.config)
    assert "has a launcher, process" in second.wait(exit_code=1)
    kill_all(started.supervisors())
    killed = time.monotonic()
    started.process.wait()
    while started.left():
        assert time.monotonic() - killed < LEASE_TIMEOUT_SECONDS + 15, started.left()
        time.sleep(0.2)
    print(f"all gone after {time.monotonic() - killed:.0f} s")

    config = write_config(tmp_path / "run2", precision="bf16")
    started = launch(config)
    started.wait_for(lambda: started.steps >= 11)
    kill_all(started.supervisors())
    started.process.wait()
    launch(config).wait()  # at once: what is left of the first is ended
    assert_same(started.run, undisturbed)
