"""Real `deepspeed` processes on the small world."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.distributed.runs import DEEPSPEED_FILES, ROOT


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Everything here starts processes of its own."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.distributed)


@pytest.fixture
def start_training() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `smdt train` on two ranks; what is left of it is killed after the test."""
    started: list[subprocess.Popen[str]] = []

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
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def start_annotating(world) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `smdt segment` or `smdt align` on the small world; what is left of it is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(command: str, trained: Path, out: Path, ranks: int) -> subprocess.Popen[str]:
        job = ["--shards", str(world), "--out", str(out), "--checkpoint", str(trained)]
        process = subprocess.Popen(
            [sys.executable, "-m", "smdt.cli", command, *job, "--ranks", str(ranks), "--batch=2"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
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
