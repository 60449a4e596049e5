"""The list that all ranks write, and its bound."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from smdt.data.quarantine import Quarantine, QuarantineLine
from smdt.data.split import DataError
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


def test_lines_of_ranks_and_threads_stay_whole(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    ranks = [Quarantine(path, 1000, TrainingMetrics("r", "s", rank)) for rank in range(3)]
    with ThreadPoolExecutor(9) as pool:
        added = [pool.submit(ranks[i % 3].add, line(i, rank=i % 3)) for i in range(600)]
    assert all(each.exception() is None for each in added)
    lines = [json.loads(each) for each in path.read_text().splitlines()]
    assert sorted((each["batch"], each["rank"]) for each in lines) == [
        (i, i % 3) for i in range(600)
    ]


def test_a_sample_counts_once_however_often_it_is_met(tmp_path, sample_value):
    metrics = TrainingMetrics("r", "s", 0)
    quarantine = Quarantine(tmp_path / "q.jsonl", 2, metrics)
    for number in (4, 5, 4, 4, 5):
        quarantine.add(line(number))
    quarantine.add(line(5, reason="missing"))
    with pytest.raises(DataError, match=r"could not read 3 samples.*max_quarantined=2.*q\.jsonl"):
        quarantine.add(line(6))
    count = "smdt_quarantined_samples_total"
    assert sample_value(metrics.registry, count, reason="checksum") == 6
    assert sample_value(metrics.registry, count, reason="missing") == 1
    assert len((tmp_path / "q.jsonl").read_text().splitlines()) == 7  # the last one too


def test_a_list_that_cannot_be_written_is_an_error(tmp_path):
    quarantine = Quarantine(tmp_path / "nowhere" / "q.jsonl", 2, TrainingMetrics("r", "s", 0))
    with pytest.raises(DataError, match=r"nowhere/q\.jsonl can't be written: No such file"):
        quarantine.add(line(1))
