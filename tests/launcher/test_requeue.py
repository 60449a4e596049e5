import subprocess
import sys

import pytest

from smdt.training.run_folder import RunFolder
from tests.distributed.runs import ROOT


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create()
    return run


def requeue(run, *options):
    command = [sys.executable, "-m", "launcher.requeue", str(run.root), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "retry", "options", "exit_code"),
    [
        ("done", True, (), 0),
        ("preempted", True, (), 75),
        ("running", True, (), 1),
        ("failed", True, (), 1),
        ("failed", False, ("--max-restarts", "3"), 1),
        ("running", True, ("--max-restarts", "3"), 75),
    ],
)
def test_the_state_decides(run, status, retry, options, exit_code):
    run.write_state(status, 7, "the disk is full" if status == "failed" else "", retry=retry)
    done = requeue(run, *options)
    assert done.returncode == exit_code, done.stderr
    assert str(run.root) in done.stdout
    assert ("the disk is full" in done.stdout) == (status == "failed")


@pytest.mark.slow
def test_failures_without_a_new_checkpoint_are_counted(run):
    run.write_state("running", 7)
    limit = ("--max-restarts", "1")
    assert requeue(run, *limit).returncode == 75
    (run.checkpoints / "step-00000009").mkdir()
    assert requeue(run, *limit).returncode == 75  # forgives what was before
    assert requeue(run, *limit).returncode == 75
    assert requeue(run, *limit).returncode == 1
