"""Alerts end to end: real runs with something wrong, and the rules that are to notice."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from smdt.training.run_folder import RunFolder
from tests.distributed.runs import ranks_of
from tests.monitoring.queries import panel_queries

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
    process = start_training(
        watched(
            run.root,
            **QUIET,
            optimizer={"learning_rate": 1e22, "gradient_clipping": 0.0},
            schedule={"length": "100000 steps", "warmup_steps": 1_000_000},
        )
    )
    (alert,) = prometheus.wait_until(
        lambda: prometheus.firing("SmdtLossNotFinite"), "the alarm", 240
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


@contextmanager
def slowed(pid: int, stopped_seconds: float = 0.1, running_seconds: float = 0.1) -> Iterator[None]:
    """Stop a process and let it go on, over and over, while the block runs."""
    done = threading.Event()

    def pulse() -> None:
        while not done.is_set():
            os.kill(pid, signal.SIGSTOP)
            time.sleep(stopped_seconds)
            os.kill(pid, signal.SIGCONT)
            done.wait(running_seconds)

    pulsing = threading.Thread(target=pulse)
    pulsing.start()
    try:
        yield
    finally:
        done.set()
        pulsing.join()


def rank_of(pid: int) -> str:
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(v.decode().split("=", 1) for v in variables if b"=" in v)["RANK"]


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
