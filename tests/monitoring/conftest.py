"""Real processes, watched by a real Prometheus."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from launcher.metrics import LauncherMetrics
from smdt.telemetry.exporter import TelemetryConfig
from tests.distributed.runs import ROOT
from tests.monitoring.raw_rows import write_rows
from tests.monitoring.server import Prometheus


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """What starts a Prometheus starts what it watches as well."""
    for item in items:
        if "prometheus" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.distributed)


@pytest.fixture
def prometheus(tmp_path) -> Iterator[Prometheus]:
    """A Prometheus that nothing has announced itself to yet."""
    server = Prometheus(tmp_path / "prometheus")
    yield server
    server.close()


@pytest.fixture
def watched(write_config, prometheus) -> Callable[..., Path]:
    """Write a YAML of a long run that announces itself."""

    def write(out: Path, **sections: object) -> Path:
        telemetry = {
            "metrics_port": 0,
            "metrics_targets": str(prometheus.targets),
            "device_tflops": 0.01,
        }
        usual = {
            "run": {"name": out.name, "out": str(out), "seed": 3, "timeout_seconds": 120},
            "schedule": {"length": "100000 steps", "warmup_steps": 4},
            "evaluation": {"every": "40 steps", "batch": 8},
            "checkpoint": {"every": "40 steps"},
            "telemetry": telemetry,
        }
        return write_config(out, **(usual | sections))

    return write


@pytest.fixture
def start_shard_job(tmp_path, prometheus) -> Iterator[Callable[[], subprocess.Popen]]:
    """Start a build that lasts a minute, with a row that is rejected now and then."""
    started = []

    def start() -> subprocess.Popen:
        raw = tmp_path / "raw"
        write_rows(raw, 8000)
        command = [sys.executable, "-m", "data_shards", "build", "folder", "--root", str(raw)]
        command += ["--out", str(tmp_path / "set"), "--metrics-targets", str(prometheus.targets)]
        command += ["--samples-per-shard=10", "--workers=1"]
        started.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL))
        return started[-1]

    yield start
    for process in started:
        process.terminate()
        process.wait()


@pytest.fixture
def launcher_endpoint(tmp_path, prometheus) -> Iterator[None]:
    """The endpoint of a launcher, without the launch."""
    metrics = LauncherMetrics("retrieval")
    metrics.set_hosts({"used": 1})
    telemetry = TelemetryConfig(metrics_port=0)
    with telemetry.serve(
        metrics.registry,
        metrics.labels,
        entry="launcher",
        run_targets=prometheus.targets,
        port_offset=0,
    ):
        yield
