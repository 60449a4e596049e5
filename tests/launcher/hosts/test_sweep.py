import os
import signal
import subprocess
import sys
import time

import pytest

from launcher.hosts.sweep import processes, sweep
from smdt.training.ranks.lease import LEASE_VARIABLE


@pytest.fixture
def start(tmp_path):
    started = []

    def make(lease):
        command = [sys.executable, "-c", "print(flush=True); import time; time.sleep(60)"]
        environment = {**os.environ, LEASE_VARIABLE: str(lease)}
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE))
        started[-1].stdout.readline()
        return started[-1]

    yield make
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_all_of_a_run_is_ended_and_nothing_else(start, tmp_path):
    ours, stopped = start(tmp_path / "lease"), start(tmp_path / "lease")
    other = start(tmp_path / "lease-of-another-run")
    os.kill(stopped.pid, signal.SIGSTOP)
    assert set(processes(str(tmp_path / "lease"))) == {ours.pid, stopped.pid}
    swept = sweep(str(tmp_path / "lease"))
    assert (swept.killed, swept.left) == (2, [])
    assert ours.wait(5) == stopped.wait(5) == -signal.SIGKILL
    time.sleep(0.1)
    assert other.poll() is None


def test_nothing_left_is_nothing_to_do(tmp_path):
    assert sweep(str(tmp_path / "lease")).killed == 0
