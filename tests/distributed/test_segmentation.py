"""Segmentation under DeepSpeed, and `smdt segment` on ranks that are killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_shards.manifest import load
from data_shards.verify import verify
from smdt.stages.trained import evaluate_trained
from smdt.training.run_folder import RunFolder
from tests.distributed.runs import ROOT, wait_for

SMALL = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 8, 16, 16],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 32,
}


@pytest.fixture
def config(world, tmp_path) -> Path:
    path = tmp_path / "segmentation.yaml"
    content = {
        "stage": "segmentation",
        "run": {"name": "test", "out": str(tmp_path / "run"), "timeout_seconds": 60},
        "data": {"shards": str(world), "decode_threads": 1, "read_threads": 1},
        "batch": {"global": 8, "chunks": 2},
        "model": {"settings": SMALL, "image_size": [32, 128]},
        "optimizer": {"learning_rate": 0.003},
        "schedule": {"length": "3 epochs", "warmup_steps": 4},
        "evaluation": {"every": "1 epoch", "batch": 8},
        "precision": "bf16",
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def start_segmenting(world):
    """Start `smdt segment` with a run on the small world; what is left of it is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(run: Path, out: Path, ranks: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "smdt.cli", "segment", "--shards", str(world)]
        command += ["--out", str(out), "--checkpoint", str(run), "--ranks", str(ranks)]
        process = subprocess.Popen(
            [*command, "--batch", "2"],
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


def files_of(root: Path) -> dict[str, bytes]:
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_trained_segmenter_fills_in_class_maps_whatever_kills_the_job(
    config, train_to_end, start_segmenting, world, tmp_path
):
    run = RunFolder(tmp_path / "run")
    train_to_end(config, zero=3)
    losses = [each["losses"]["loss"] for each in run.read_metrics() if "losses" in each]
    assert len(losses) == 24
    assert losses[-1] < 0.9 * losses[0]
    trained = json.loads(run.evaluation.read_text())["scores"]["mIoU"]
    alone = evaluate_trained(run.root, str(world), "val", 0).scores
    assert alone["mIoU"] == pytest.approx(trained, abs=0.02)

    whole = tmp_path / "whole"
    process = start_segmenting(run.root, whole, ranks=1)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert verify(whole, workers=1).damages == []
    assert load(whole).made["seg"]["architecture"] == "segformer"

    out = tmp_path / "killed"
    process = start_segmenting(run.root, out, ranks=2)
    wait_for(lambda: list(out.rglob("*.parquet")), process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    finished = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}

    process = start_segmenting(run.root, out, ranks=2)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    assert files_of(out) == files_of(whole)
