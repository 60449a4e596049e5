"""Real `deepspeed` processes on the small world."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.distributed.runs import ROOT


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Everything here starts processes of its own."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.distributed)


@pytest.fixture
def start_annotating(world) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `smdt segment` or `smdt align` on the small world; what is left of it is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(command: str, trained: Path, out: Path, ranks: int) -> subprocess.Popen[str]:
        job = ["--shards", str(world), "--out", str(out), "--checkpoint", str(trained)]
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "smdt.cli",
                command,
                *job,
                "--ranks",
                str(ranks),
                "--batch=2",
            ],
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
