"""Alerts end to end: real runs with something wrong, and the rules that are to notice."""

import os
import signal

import pytest

from smdt.training.checkpoints.run_folder import RunFolder
from tests.distributed.runs import ranks_of, wait_for
from tests.monitoring.queries import panel_queries
from tests.monitoring.slow_rank import rank_of, slowed

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]

QUIET = {"evaluation": {"every": "1000 epochs", "batch": 8}, "checkpoint": {"every": "1000 epochs"}}
"""Nothing but steps."""
BUSY = {"batch": {"global": 24}, "model": {"width": 128, "layers": 4}}
"""Steps that compute for longer than they exchange."""


def training(prometheus, run: str) -> list:
    """The steps per second of a run's ranks, of those that make any."""
    return prometheus.query(f'smdt:samples:rate{{run="{run}"}} > 0')


def test_a_run_whose_loss_is_not_finite(prometheus, watched, start_training, tmp_path):
    run = RunFolder(tmp_path / "burst")
    # The rate grows with every step until weights overflow.
    config = watched(
        run.root,
        **QUIET,
        optimizer={"learning_rate": 1e22, "gradient_clipping": 0.0},
        schedule={"length": "100000 steps", "warmup_steps": 1_000_000},
    )
    process = start_training(config)
    wait_for(lambda: list(prometheus.targets.glob("*-rank-00001.json")), process)
    # Prometheus takes seconds to find a process: one rank waits, or the run is over by then.
    waiting = {rank_of(pid): pid for pid in ranks_of(config)}["1"]
    os.kill(waiting, signal.SIGSTOP)
    prometheus.wait_until(
        lambda: prometheus.query('smdt_steps_planned{run="burst", rank="0"}'), "a scrape"
    )
    os.kill(waiting, signal.SIGCONT)
    (alert,) = prometheus.wait_until(
        lambda: prometheus.firing("SmdtLossNotFinite"), "the alarm", 120
    )
    assert alert["run"] == "burst"
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "in a row none could be made" in output
    assert run.read_state()["status"] == "failed"
    assert list(prometheus.targets.iterdir()) == []


def test_a_run_whose_storage_is_slow(prometheus, watched, start_training, world, s3, tmp_path):
    s3.put(world, f"{s3.url}/world")
    fast, slow = tmp_path / "fed", tmp_path / "starved"
    start_training(watched(fast, **QUIET), ranks=1)
    # A cache of one shard: every epoch reads everything anew.
    shard = max(path.stat().st_size for path in world.rglob("*.tar"))
    data = {
        "shards": f"{s3.url}/world",
        "cache": {"folder": str(tmp_path / "cache"), "gigabytes": 1.5 * shard / 1e9},
        "order": {"policy": "sequential"},
        "decode_threads": 1,
        "read_threads": 1,
        "read_ahead": 1,
    }
    start_training(watched(slow, **QUIET, data=data), ranks=1)
    prometheus.wait_until(lambda: training(prometheus, "starved"), "the run trains", 240)
    s3.proxy.delay_seconds = 0.3
    (alert,) = prometheus.wait_until(
        lambda: prometheus.firing("SmdtInputStarving"), "the alarm", 120
    )
    assert alert["run"] == "starved"
    assert prometheus.firing("SmdtRunStalled") == []


def on_top(prometheus, panel: str) -> str:
    """The rank that a ranking of the committed dashboard shows first."""
    (query,) = [each for each in panel_queries() if each.panel == panel]
    answer = prometheus.query(query.filled(run="limping", stage="retrieval"))
    return answer[0][0]["rank"]


@pytest.mark.parametrize("slow_rank", ["0", "1", "2"])
def test_the_dashboard_names_the_rank_that_was_slowed(
    prometheus, watched, start_training, tmp_path, slow_rank
):
    """An operator looks at two panels, and nothing else is known of the run."""
    config = watched(tmp_path / "limping", **QUIET, **BUSY)
    start_training(config, ranks=3)
    prometheus.wait_until(
        lambda: len(prometheus.query("smdt:straggler_lag:ratio")) == 3, "three ranks train", 240
    )
    ranks = {rank_of(pid): pid for pid in ranks_of(config)}
    assert sorted(ranks) == ["0", "1", "2"]
    with slowed(ranks[slow_rank]):
        (alert,) = prometheus.wait_until(
            lambda: prometheus.firing("SmdtStragglingRank"), "the alarm", 120
        )
        assert alert["rank"] == slow_rank
        assert on_top(prometheus, "Straggler: how much longer the others wait") == slow_rank
        assert on_top(prometheus, "Own work in a step") == slow_rank
    prometheus.wait_until(lambda: not prometheus.firing("SmdtStragglingRank"), "the alarm ends", 60)
