"""A real Prometheus over real runs: every query of every panel and rule has an answer."""

import math
import os
import signal

import pytest

from monitoring.times import duration
from tests.distributed.runs import ranks_of
from tests.monitoring.queries import committed_rules, measured, panel_queries

ALIGNMENT = {
    "stage": "alignment",
    "geometry": {"panorama_size": [32, 64]},
    "model": {"generator_width": 2, "discriminator_width": 2},
}


def unanswered(prometheus, names):
    """Panels and rules of which a query has no finite value now."""
    window = duration(prometheus.times.rate)

    def answers(expr):
        return any(math.isfinite(value) for _, value in prometheus.query(expr))

    missing = [
        query
        for query in panel_queries()
        if not any(
            answers(query.filled(run=run, stage=run, set="set", __rate_interval=window))
            for run in names
        )
    ]
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(committed_rules())
    # An evaluation may fail for once, as when the clock is set back; all must be well together.
    failing = [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"]
    return missing + failing + [rule["name"] for rule in rules if not answers(measured(rule))]


@pytest.mark.timeout(600)
def test_every_panel_and_rule_has_data_and_frozen_ranks_raise_the_alarm(
    prometheus, watched, start_training, start_shard_job, launcher_endpoint, tmp_path
):
    names = ("retrieval", "alignment")
    config = watched(tmp_path / "retrieval")
    start_training(config)
    start_training(watched(tmp_path / "alignment", **ALIGNMENT), ranks=1)
    prometheus.wait_until(
        lambda: (
            len(prometheus.query('smdt_recall{k="1"}')) == 2
            and prometheus.query("smdt_image_quality")
        ),
        "both runs have evaluated themselves",
        240,
    )
    start_shard_job()
    missing: list[object] = []

    def all_answer():
        missing[:] = unanswered(prometheus, names)
        return not missing

    try:
        prometheus.wait_until(all_answer, "every query has an answer", 60)
    except AssertionError as error:
        raise AssertionError(f"no data: {missing}") from error

    labels = {label for series, _ in prometheus.query('{__name__=~"smdt.*"}') for label in series}
    assert labels == {
        *("__name__", "job", "instance", "run", "stage", "rank", "host", "le", "term", "engine"),
        *("kind", "reason", "protocol", "k", "metric", "state"),
        *("smdt", "torch", "deepspeed", "device", "precision", "zero", "world_size"),
        "global_batch",
    }

    assert prometheus.firing("SmdtRunStalled") == []
    ranks = ranks_of(config)
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    try:
        (stalled,) = prometheus.wait_until(
            lambda: prometheus.firing("SmdtRunStalled"), "the alarm", 60
        )
        assert (stalled["run"], stalled["severity"]) == ("retrieval", "critical")
        down = prometheus.firing("SmdtEndpointDown")
        assert {(series["run"], series["rank"]) for series in down} == {
            ("retrieval", "0"),
            ("retrieval", "1"),
        }
    finally:
        for pid in ranks:
            os.kill(pid, signal.SIGCONT)
    prometheus.wait_until(
        lambda: not prometheus.firing("SmdtRunStalled"), "the run goes on and the alarm ends", 60
    )
