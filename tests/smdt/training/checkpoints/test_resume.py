import json

import pytest

from data_shards.base.errors import InputError
from smdt.data.order import DataState
from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.checkpoint import Progress
from smdt.training.checkpoints.resume import find_checkpoint
from smdt.training.checkpoints.run_folder import RunFolder


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints after steps 5 and 10."""
    folder = RunFolder(tmp_path / "run")
    for step in (5, 10):
        save(folder, step)
    return folder


def save(folder, step):
    path = checkpoint.folder_of(folder.checkpoints, step)
    path.mkdir(parents=True)
    progress = Progress(step, 8 * step, 2, 2, DataState("0" * 64, 0, 0, 8 * step))
    (path / checkpoint.PROGRESS).write_text(json.dumps(progress.to_json()))
    checkpoint._seal(path)
    return path


def test_the_newest_is_taken_unless_another_is_named(run, tmp_path):
    assert find_checkpoint(run, "auto") == checkpoint.folder_of(run.checkpoints, 10)
    assert find_checkpoint(RunFolder(tmp_path / "new"), "auto") is None
    named = checkpoint.folder_of(run.checkpoints, 10)
    assert find_checkpoint(run, str(named)) == named
    assert find_checkpoint(RunFolder(tmp_path / "new"), str(named)) == named
    newer = save(RunFolder(tmp_path / "other"), 20)
    assert find_checkpoint(run, str(newer)) == newer


def test_one_that_the_next_start_would_leave_for_a_newer_one_is_refused(run):
    with pytest.raises(InputError, match=r"step-00000010 is newer than --resume .*step-00000005"):
        find_checkpoint(run, str(checkpoint.folder_of(run.checkpoints, 5)))


def test_one_is_not_refused_for_a_newer_one_that_no_start_would_take(run):
    older, newer = (checkpoint.folder_of(run.checkpoints, step) for step in (5, 10))
    (newer / checkpoint.PROGRESS).write_text("{}")
    assert find_checkpoint(run, "auto") == older
    assert find_checkpoint(run, str(older)) == older


def test_a_damaged_one_and_an_overwritten_run_are_refused(run, tmp_path):
    damaged = checkpoint.folder_of(run.checkpoints, 10)
    (damaged / checkpoint.PROGRESS).write_text("{}")
    with pytest.raises(InputError, match="name another one for --resume"):
        find_checkpoint(run, str(damaged))
    with pytest.raises(InputError, match="--resume never would overwrite"):
        find_checkpoint(run, "never")
    assert find_checkpoint(RunFolder(tmp_path / "new"), "never") is None
