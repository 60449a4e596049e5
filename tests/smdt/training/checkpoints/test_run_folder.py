import json

import pytest

from data_shards.base.errors import InputError
from smdt.training.checkpoints.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return folder


def test_rewinding_drops_what_a_resumed_run_writes_again(folder):
    for step in range(1, 6):
        folder.append_metrics({"step": step})
    folder.rewind_metrics(3)
    assert [record["step"] for record in folder.read_metrics()] == [1, 2, 3]


def test_a_line_that_a_kill_cut_short_is_left_out(folder):
    folder.append_metrics({"step": 1})
    with folder.metrics.open("a") as file:
        file.write('{"step": 2, "los')
    assert [record["step"] for record in folder.read_metrics()] == [1]
    folder.rewind_metrics(5)
    folder.append_metrics({"step": 2})
    assert [record["step"] for record in folder.read_metrics()] == [1, 2]


def test_what_happened_is_kept_in_order_and_survives_a_cut(folder):
    folder.note("started", step=0, ranks=2)
    with folder.history.open("a") as file:
        file.write('{"time": 17')
    folder.note("saved", step=4, bytes=10)
    folder.note("failed", reason="disk full")
    lines = [{**line, "time": None} for line in folder.read_history()]
    assert lines == [
        {"time": None, "event": "started", "step": 0, "ranks": 2},
        {"time": None, "event": "saved", "step": 4, "bytes": 10},
        {"time": None, "event": "failed", "reason": "disk full"},
    ]


def test_a_failure_keeps_the_step_that_was_reached(folder):
    folder.write_state("running", 7)
    folder.write_state("failed", reason="disk full")
    state = {"status": "failed", "step": 7, "reason": "disk full", "retry": True, "attempt": None}
    assert folder.read_state() == json.loads(folder.state.read_text()) == state


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"run\.out"):
        RunFolder(tmp_path / "file" / "run").create()
