"""There is a report of a run folder in any state: young, damaged, half deleted."""

import pytest

from smdt.report.page import write_report
from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.run_folder import RunFolder


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run that has only been configured."""
    run = RunFolder(tmp_path / "run")
    run.create()
    run.config.write_text(
        f"stage: retrieval\nrun: {{name: a-run, out: {run.root}}}\ndata: {{shards: gone}}\n"
    )
    return run


CONTENTS = {
    "empty": b"",
    "cut short": b'{"step": 3, "los',
    "a list": b"[1, 2]\n",
    "null": b"null\n",
    "other bytes": b"\xff\xfe\x00\n",
    "other types": b'{"step": "3", "losses": {"loss": "x"}, "scores": [], "event": 5}\n',
    "numbers that are none": b'{"step": 1, "losses": {"loss": NaN}, "scores": {"R@1": Infinity}}\n',
    "halves of characters": b'{"event": "failed", "reason": "\\ud800", "status": "\\ud800"}\n',
}


@pytest.mark.parametrize("content", CONTENTS)
def test_whatever_stands_in_a_file_there_is_a_report(run, content, caplog):
    files = (run.metrics, run.history, run.quarantine, run.state, run.evaluation, run.references)
    for file in (*files, run.environment):
        file.write_bytes(CONTENTS[content])
    assert "a-run" in write_report(run.root).read_text()
    if content in ("empty", "cut short", "a list", "null", "other bytes"):
        assert f"{run.evaluation} is not a JSON object" in caplog.text


def test_a_young_run_and_one_whose_data_set_is_gone(run, caplog):
    assert "not evaluated yet" in write_report(run.root).read_text()
    run.evaluation.write_text(
        '{"shards": "gone", "split": "val", "gallery": "val", "scores": {"R@1": 0.5}, '
        '"retrievals": [], "outcomes": {}}'
    )
    assert "50.00%" in write_report(run.root).read_text()
    assert "the report shows no pictures" in caplog.text


def test_a_checkpoint_that_is_damaged_is_listed(run):
    checkpoint.folder_of(run.checkpoints, 5).mkdir()
    assert "step-00000005" in write_report(run.root).read_text()
