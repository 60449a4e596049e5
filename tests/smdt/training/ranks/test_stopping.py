import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smdt.training.ranks.lease import ATTEMPT_VARIABLE, LEASE_VARIABLE, LeaseRecord
from smdt.training.ranks.stopping import LAUNCHER_PID_VARIABLE, StopRequest

RANK = """
import os, sys, time
from smdt.training.ranks.stopping import exit_with_parent
exit_with_parent(poll_seconds=0.05)
print(os.getpid(), flush=True)
time.sleep(60)
"""
PARENT = f"""
import subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-c", {RANK!r}])
time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_the_stop_file_is_a_request(tmp_path):
    request = StopRequest(tmp_path / "stop")
    assert not request
    (tmp_path / "stop").touch()
    assert request


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_schedulers_signal_is_a_request(tmp_path, number):
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        request = StopRequest(tmp_path / "stop")
        request.listen()
        os.kill(os.getpid(), number)
        assert request
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@pytest.mark.parametrize("victim", ["parent", "launcher"])
def test_a_rank_ends_with_what_started_it(victim):
    launcher = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        env={**os.environ, LAUNCHER_PID_VARIABLE: str(launcher.pid)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        rank = int(parent.stdout.readline())
        assert alive(rank)
        chosen = parent if victim == "parent" else launcher
        chosen.kill()
        chosen.wait()
        end = time.monotonic() + 20
        while alive(rank):
            assert time.monotonic() < end, "the rank is an orphan"
            time.sleep(0.05)
    finally:
        for process in (parent, launcher):
            process.kill()
            process.wait()
        parent.stdout.close()


def test_a_rank_ends_when_its_attempt_is_over(tmp_path):
    lease = tmp_path / "lease"
    LeaseRecord("0001", "here", os.getpid()).write(lease)
    rank = subprocess.Popen(
        [sys.executable, "-c", RANK],
        env={**os.environ, LEASE_VARIABLE: str(lease), ATTEMPT_VARIABLE: "0001"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        rank.stdout.readline()
        time.sleep(0.3)
        assert rank.poll() is None
        LeaseRecord("", "here", os.getpid()).write(lease)
        assert rank.wait(20) == 1
    finally:
        rank.kill()
        rank.wait()
        rank.stdout.close()
