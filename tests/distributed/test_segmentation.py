"""Segmentation under DeepSpeed, and `smdt segment` on ranks that are killed."""

import json
import signal

import pytest

from data_shards.format.manifest import load
from data_shards.inspect.verify import verify
from smdt.stages.trained import evaluate_trained
from smdt.training.checkpoints.run_folder import RunFolder
from tests.distributed.runs import SEGMENTATION, files_of, wait_for


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_trained_segmenter_fills_in_class_maps_whatever_kills_the_job(
    write_config, train_to_end, start_annotating, world, tmp_path
):
    run = RunFolder(tmp_path / "run")
    chunks = {"global": 8, "chunks": 2}
    config = write_config(run.root, **SEGMENTATION, batch=chunks, precision="bf16")
    train_to_end(config, zero=3)
    losses = [each["losses"]["loss"] for each in run.read_metrics() if "losses" in each]
    assert len(losses) == 24
    assert losses[-1] < 0.9 * losses[0]
    trained = json.loads(run.evaluation.read_text())["scores"]["mIoU"]
    alone = evaluate_trained(run.root, str(world), "val", 0).scores
    assert alone["mIoU"] == pytest.approx(trained, abs=0.02)

    whole = tmp_path / "whole"
    process = start_annotating("segment", run.root, whole, ranks=1)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert verify(whole, workers=1).damages == []
    assert load(whole).made["seg"]["architecture"] == "segformer"

    out = tmp_path / "killed"
    process = start_annotating("segment", run.root, out, ranks=2)
    wait_for(lambda: list(out.rglob("*.parquet")), process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    finished = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}

    process = start_annotating("segment", run.root, out, ranks=2)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    assert files_of(out) == files_of(whole)
