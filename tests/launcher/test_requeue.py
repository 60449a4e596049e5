import pytest

from launcher.requeue import requeue
from smdt.training.checkpoints.run_folder import RunFolder
from smdt.training.ranks.lease import ATTEMPT_VARIABLE


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create()
    return run


@pytest.mark.parametrize(
    ("status", "retry", "max_restarts", "exit_code"),
    [
        ("done", True, None, 0),
        ("preempted", True, None, 75),
        ("running", True, None, 1),
        ("failed", True, None, 1),
        ("failed", False, 3, 1),
        ("running", True, 3, 75),
        ("failed", True, 3, 75),
    ],
)
def test_the_state_decides(run, capsys, status, retry, max_restarts, exit_code):
    run.write_state(status, 7, "the disk is full" if status == "failed" else "", retry=retry)
    assert requeue(run.root, max_restarts) == exit_code
    said = capsys.readouterr().out
    assert str(run.root) in said
    assert ("the disk is full" in said) == (status == "failed")


@pytest.mark.parametrize("status", ["done", "preempted"])
def test_what_an_earlier_attempt_left_is_not_believed(run, monkeypatch, status):
    monkeypatch.setenv(ATTEMPT_VARIABLE, "slurm-7-0")
    run.write_state(status, 7)
    monkeypatch.setenv(ATTEMPT_VARIABLE, "slurm-7-1")  # whose ranks ended before they said anything
    assert [requeue(run.root, 1), requeue(run.root, 1)] == [75, 1]
    assert requeue(run.root) == 1


def test_a_run_that_never_began_starts_again_while_it_may(run):
    assert [requeue(run.root, 1), requeue(run.root, 1)] == [75, 1]


def test_failures_without_a_new_checkpoint_are_counted(run):
    run.write_state("running", 7)
    assert requeue(run.root, 1) == 75
    (run.checkpoints / "step-00000009").mkdir()
    codes = [requeue(run.root, 1) for _ in range(3)]
    assert codes == [75, 75, 1]  # the new checkpoint forgives what was before it


def test_a_job_that_is_submitted_again_has_no_failures_of_the_last_one(run, monkeypatch):
    run.write_state("running", 7)

    def ends(job, restarts):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        if restarts:
            monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        else:  # as Slurm leaves it
            monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
        return requeue(run.root, 2)

    assert [ends("7", restarts) for restarts in range(3)] == [75, 75, 1]
    assert [ends("8", restarts) for restarts in range(3)] == [75, 75, 1]
    # Preempted before it could fail: the count that is there is another job's.
    assert ends("9", 1) == 75
    # Slurm's numbers began again.
    assert ends("9", 0) == 75


@pytest.mark.parametrize("text", ["", "{", "[]", '{"step": "x"}', '{"step": 9, "in_vain": 9}'])
def test_a_count_that_cannot_be_read_begins_anew(run, monkeypatch, text):
    run.write_state("running", 7)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    (run.root / "restarts.json").write_text(text)
    assert requeue(run.root, 2) == 75
