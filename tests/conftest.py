"""A small world that every test of the whole system shares."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
import yaml
from hypothesis import settings

from data_shards.build.dataset import build
from data_shards.format.plan import BuildOptions
from data_shards.world.source import WorldSource
from tests.distributed.runs import DEEPSPEED_FILES, ROOT, kill, processes_of
from tests.store import S3, Proxy, environment, s3_store
from tests.system_packages import NEEDS, packages_in

# The machine is shared: a slow moment is no failure. A hand-over draws the same examples each time.
settings.register_profile("shared", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("shared")

# A job in a shell's background ignores ^C, and so would every program that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs the world is slow: making it takes longer than most tests."""
    for item in items:
        if "world" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line which system packages would run the tests that were skipped."""
    reasons = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    packages = {name for each in reasons if NEEDS in each for name in packages_in(each)}
    if packages:
        terminalreporter.write_line(
            f"To run the skipped tests: apt-get install {' '.join(sorted(packages))}"
        )


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """Shards of a small world: 64 training pairs in 4 shards, 24 of an unseen city."""
    root = tmp_path_factory.mktemp("world") / "shards"
    source = WorldSource(0, 64, 24, "easy", (32, 128), 96)
    build(source, root, BuildOptions(samples_per_shard=16), workers=1)
    return root


@pytest.fixture
def write_config(world, tmp_path) -> Callable[..., Path]:
    """Write a YAML of a run on the small world; keywords replace whole sections, None drops one."""

    def write(out: Path, **sections: object) -> Path:
        content = {
            "stage": "retrieval",
            "run": {"name": "test", "out": str(out), "seed": 3, "timeout_seconds": 60},
            "data": {"shards": str(world), "decode_threads": 1, "read_threads": 1},
            "batch": {"global": 8},
            "geometry": {"panorama_size": [32, 128]},
            "model": {"dropout": 0.1, "width": 64, "layers": 2},
            "optimizer": {"learning_rate": 0.001},
            "schedule": {"length": "3 epochs", "warmup_steps": 4},
            "checkpoint": {"every": "3 steps"},
            "evaluation": {"every": "1 epoch", "batch": 8},
            "telemetry": {"metrics_port": 0},
            "precision": "fp32",
        }
        path = tmp_path / f"{out.name}.yaml"
        left = {key: value for key, value in (content | sections).items() if value is not None}
        path.write_text(yaml.safe_dump(left))
        return path

    return write


@pytest.fixture
def start_training() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `smdt train` on two ranks; what is left of it is killed after the test."""
    started: list[tuple[Path, subprocess.Popen[str]]] = []

    def start(config: Path, *overrides: str, ranks: int = 2, zero: int = 2) -> subprocess.Popen:
        settings = DEEPSPEED_FILES / f"zero{zero}.json"
        command = [sys.executable, "-m", "smdt.cli", "train", "--config", str(config)]
        command += ["--deepspeed_config", str(settings), "--ranks", str(ranks), *overrides]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append((config, process))
        return process

    yield start
    for config, process in started:
        if process.poll() is None:
            kill(processes_of(config))  # its launchers and ranks too: they outlive it
            process.communicate()


@pytest.fixture
def train_to_end(start_training) -> Callable[..., str]:
    """Run `smdt train` until it ends; return what it printed."""

    def run(*arguments: object, exit_code: int = 0, **options: int) -> str:
        process = start_training(*arguments, **options)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == exit_code, output
        return output

    return run


@pytest.fixture(scope="session")
def alignment(world, tmp_path_factory):
    """An alignment that was not trained, of another size than the world's panoramas."""
    from tests.checkpoints import UntrainedAlignment

    return UntrainedAlignment.save(world, tmp_path_factory.mktemp("alignment"))


@pytest.fixture(scope="session")
def aligned_world(world, alignment, tmp_path_factory) -> Path:
    """The small world with what that alignment makes of it."""
    import torch

    from smdt.inference.align import open_alignment
    from smdt.inference.annotate import Annotation, annotate, finish

    out = tmp_path_factory.mktemp("aligned") / "shards"
    job = Annotation(str(world), str(out), batch=16, max_missing=0)
    device = torch.device("cpu")
    annotate(job, open_alignment(alignment.folder, device), device, 0, 1, lambda samples: None)
    finish(job)
    return out


@pytest.fixture(scope="session")
def s3_proxy() -> Iterator[Proxy]:
    """An S3 on loopback, made for the first test that wants it."""
    with s3_store() as proxy:
        yield proxy


@pytest.fixture
def s3(s3_proxy, monkeypatch, request) -> Iterator[S3]:
    """A folder of its own in the S3, for this process and those that it starts."""
    for name, value in environment(s3_proxy).items():
        monkeypatch.setenv(name, value)
    # fsspec reads the environment when it is imported, which is before this
    endpoint = {"endpoint_url": os.environ["FSSPEC_S3_ENDPOINT_URL"]}
    monkeypatch.setitem(fsspec.config.conf, "s3", endpoint)
    s3_proxy.mend()
    yield S3(f"s3://data/{request.node.name.replace('[', '-').replace(']', '')}", s3_proxy)
    s3_proxy.delay_seconds = 0.0
    s3_proxy.mend()
