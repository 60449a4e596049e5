import os
import subprocess

import pytest

from data_shards.base.errors import Stopped, UserError
from launcher.run import local
from launcher.run.command import LocalLaunch, local_attempt
from smdt.training.checkpoints.run_folder import RunFolder
from smdt.training.ranks.lease import ATTEMPT_VARIABLE


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose ranks end at once and say nothing; its state is what some attempt left."""

    def left_by(attempt, status="preempted", ranks="true"):
        monkeypatch.setenv(ATTEMPT_VARIABLE, attempt)
        folder = RunFolder(tmp_path / "run")
        folder.create()
        folder.write_state(status, 7)
        monkeypatch.setattr(local, "_start", lambda plan: subprocess.Popen([ranks]))
        local.run_local(LocalLaunch("smdt.train", [], ["-1"], 1, 1, False), folder)

    return left_by


def test_how_the_run_ended_is_in_its_state(run):
    with pytest.raises(Stopped, match="Stopped at step 7 and saved"):
        run(local_attempt(os.getpid()))


def test_a_rank_that_aborts_after_the_end_of_the_run_does_not_undo_it(run):
    run(local_attempt(os.getpid()), "done", ranks="false")
    with pytest.raises(UserError, match="a rank ended before its time"):
        run(local_attempt(os.getpid()), "running", ranks="false")


def test_what_an_earlier_start_left_is_not_believed(run):
    with pytest.raises(UserError, match="a rank ended before its time") as failed:
        run("local-1")
    assert not isinstance(failed.value, Stopped)
