"""The list that all ranks write, and its bound."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_shards.base.errors import DataError
from smdt.data.quarantine import Quarantine, QuarantineLine
from smdt.telemetry.metrics import TrainingMetrics


def line(number: int, rank: int = 0, reason: str = "checksum") -> QuarantineLine:
    return QuarantineLine(
        epoch=0,
        batch=number,
        position=0,
        key=f"train-{number:09d}",
        source_id="x" * 200,
        shard=0,
        part="ground",
        reason=reason,
        detail="d" * 300,
        stand_in="train-000000000",
        rank=rank,
    )


def test_lines_of_ranks_stay_whole(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    ranks = [Quarantine(path, 1000, TrainingMetrics("r", "s", rank)) for rank in range(3)]

    def work(rank: int) -> None:
        for number in range(rank, 600, 3):
            ranks[rank].add([line(number, rank)])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    lines = [json.loads(each) for each in path.read_text().splitlines()]
    assert sorted((each["batch"], each["rank"]) for each in lines) == [
        (i, i % 3) for i in range(600)
    ]


def test_a_sample_counts_once_however_often_it_is_met(tmp_path, sample_value):
    metrics = TrainingMetrics("r", "s", 0)
    quarantine = Quarantine(tmp_path / "q.jsonl", 2, metrics)
    for number in (4, 5, 4, 4, 5):
        quarantine.add([line(number)])
    quarantine.add([line(5, reason="missing")])
    with pytest.raises(
        DataError, match=r"^3 samples could not be read.*max_quarantined=2.*q\.jsonl"
    ):
        quarantine.add([line(6)])
    count = "smdt_quarantined_samples_total"
    assert sample_value(metrics.registry, count, reason="checksum") == 6
    assert sample_value(metrics.registry, count, reason="missing") == 1
    assert len((tmp_path / "q.jsonl").read_text().splitlines()) == 7  # the last one too


def test_the_bound_is_of_all_ranks_and_of_what_was_before(tmp_path):
    def rank(number: int) -> Quarantine:
        return Quarantine(tmp_path / "q.jsonl", 3, TrainingMetrics("r", "s", number))

    rank(0).add([line(1), line(2)])
    resumed = [rank(0), rank(1)]
    resumed[0].add([line(1)])  # known already
    resumed[1].add([line(3, rank=1)])
    with pytest.raises(DataError, match=r"^4 samples"):
        resumed[0].add([line(4)])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    where=st.sets(st.tuples(st.integers(0, 2), st.integers(0, 5)), max_size=9),
    epoch=st.integers(0, 2),
    batch=st.integers(0, 5),
    torn=st.booleans(),
)
def test_a_run_that_goes_on_drops_what_it_hands_out_again(tmp_path, where, epoch, batch, torn):
    path = tmp_path / "q.jsonl"
    path.unlink(missing_ok=True)
    quarantine = Quarantine(path, 100, TrainingMetrics("r", "s", 0))
    quarantine.add([replace(line(b), epoch=e) for e, b in sorted(where)])
    if torn and where:
        path.write_bytes(path.read_bytes() + b'{"epoch": 0, "ba')
    quarantine.rewind(epoch, batch)
    kept = [json.loads(each) for each in path.read_text().splitlines()] if where else []
    assert [(k["epoch"], k["batch"]) for k in kept] == sorted(
        w for w in where if w < (epoch, batch)
    )


def test_a_list_that_cannot_be_written_is_an_error(tmp_path):
    quarantine = Quarantine(tmp_path / "nowhere" / "q.jsonl", 2, TrainingMetrics("r", "s", 0))
    with pytest.raises(DataError, match=r"nowhere/q\.jsonl can't be written: No such file"):
        quarantine.add([line(1)])
