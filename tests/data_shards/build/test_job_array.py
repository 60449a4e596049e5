import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.base.errors import InputError
from data_shards.build.job_array import ArrayTask, parse_task


@given(st.integers(0, 50), st.integers(1, 20))
def test_the_shares_are_the_whole_once_and_even(items, count):
    shares = [ArrayTask(k, count).share(range(items)) for k in range(count)]
    assert sorted(item for share in shares for item in share) == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def slurm(task_id, ids):
    """What Slurm sets in task `task_id` of an array of `ids`."""
    values = {"ID": task_id, "MIN": min(ids), "MAX": max(ids), "COUNT": len(ids)}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize("ids", [range(1), range(4), range(1, 5), range(3, 20, 4), range(7, 8)])
def test_every_task_of_a_slurm_array_gets_its_own_index(ids):
    tasks = [parse_task("auto", slurm(task_id, ids)) for task_id in ids]
    assert tasks == [ArrayTask(k, len(ids)) for k in range(len(ids))]


def test_what_is_written_and_what_kubernetes_says():
    kubernetes = {"JOB_COMPLETION_INDEX": "2", "JOB_COMPLETIONS": "8"}
    assert parse_task("auto", kubernetes) == ArrayTask(2, 8)
    assert parse_task("7/8", kubernetes) == ArrayTask(7, 8)


@pytest.mark.parametrize(
    ("text", "environment", "sentence"),
    [
        ("8/8", {}, "task 8 is out of range: 8 tasks, counted from 0"),
        ("0/0", {}, "task 0 is out of range: 0 tasks"),
        ("-1/8", {}, "neither K/N, as 0/8, nor auto"),
        ("3", {}, "neither K/N, as 0/8, nor auto"),
        ("auto", {}, "neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "1"}, "needs the variable SLURM_ARRAY_TASK_MIN"),
        ("auto", {"JOB_COMPLETION_INDEX": "1"}, "JOB_COMPLETIONS, which the Job's manifest"),
        ("auto", {"JOB_COMPLETION_INDEX": "1", "JOB_COMPLETIONS": "x"}, "is 'x', which is no"),
        (
            "auto",
            {"JOB_COMPLETION_INDEX": "4", "JOB_COMPLETIONS": "4"},
            "task 4 is out of range: 4 tasks",
        ),
        ("auto", slurm(3, [1, 3, 7]), "1 to 7, are not evenly numbered"),
        ("auto", slurm(2, [1, 2, 7]), "1 to 7, are not evenly numbered"),
    ],
)
def test_what_is_missing_or_wrong_is_one_sentence(text, environment, sentence):
    with pytest.raises(InputError, match=sentence):
        parse_task(text, environment)
