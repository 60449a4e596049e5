"""A run that goes on under another configuration, and a run folder that has one writer."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.run_folder import RunFolder
from tests.distributed.runs import DEEPSPEED_FILES, ROOT, wait_for

ALONE = {"ranks": 1, "zero": 0}


def steps(run: RunFolder) -> list[int]:
    return [record["step"] for record in run.read_metrics() if "losses" in record]


def newest(run: RunFolder) -> checkpoint.Progress:
    return checkpoint.load_progress(checkpoint.published(run.checkpoints)[0])


@pytest.mark.timeout(900)
def test_a_trial_is_gone_on_from_with_its_own_batch_and_schedule(
    write_config, train_to_end, tmp_path
):
    """64 pairs: 20 are seen by the trial, 44 of the first epoch are left: two batches of 16."""
    run = RunFolder(tmp_path / "run")
    config = write_config(run.root, batch={"global": 16})
    train_to_end(config, "schedule.length=5 steps", "batch.global=4", **ALONE)
    assert newest(run).data.cuts == ((4, 5),)

    said = train_to_end(config, **ALONE)
    assert "batch.global is 16, was 4: it holds from the next step on" in said
    assert "schedule.length is 3 epochs, was 5 steps" in said
    assert steps(run) == list(range(1, 5 + 2 + 4 + 4 + 1))
    progress = newest(run)
    assert (progress.step, progress.samples) == (15, 5 * 4 + 10 * 16)
    scores = [record["step"] for record in run.read_metrics() if "scores" in record]
    assert scores == [5, 7, 11, 15]  # at the trial's end, then where epochs end

    last = checkpoint.published(run.checkpoints)[0]
    assert json.loads((last / checkpoint.DEEPSPEED).read_text())["zero_optimization"] == {
        "stage": 0
    }
    assert json.loads((last / checkpoint.ENVIRONMENT).read_text())["world_size"] == 1
    before = {name: (run.root / name).read_bytes() for name in ("metrics.jsonl", "state.json")}
    for change, said in [
        ("loss.name=info_nce", "loss.name is info_nce, was soft_margin"),
        ("precision=bf16", "precision is bf16, was fp32"),
        ("schedule.length=1 epoch", "schedule.length is 1 epoch, and "),
    ]:
        output = train_to_end(config, change, exit_code=2, **ALONE)
        assert said in output
        assert "Traceback" not in output
        assert len(output.strip().splitlines()) == 1
    zero = train_to_end(config, exit_code=2, ranks=1, zero=1)
    assert "zero_optimization.stage to 0" in zero
    assert before == {name: (run.root / name).read_bytes() for name in before}


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("zero", [0, 2])
def test_a_batch_and_an_order_that_change_in_the_middle_repeat_no_sample(
    write_config, train_to_end, zero, tmp_path
):
    run = RunFolder(tmp_path / "run")
    rare = {"every": "9 epochs"}
    config = write_config(run.root, evaluation=rare, checkpoint=rare)
    first = "data.order.window=16"
    train_to_end(config, "schedule.length=3 steps", first, zero=zero)
    said = train_to_end(config, "batch.global=4", "data.order.window=4", zero=zero)
    assert "data.order.window is 4, was 16: it holds from the next epoch on" in said
    progress = newest(run)
    assert progress.samples == 3 * 64
    assert progress.step == 3 + (64 - 24) // 4 + 2 * 16
    said = train_to_end(config, "batch.global=4", "data.order.window=4", zero=zero)
    assert "nothing is left to train" in said


@pytest.mark.timeout(900)
def test_a_run_folder_has_one_writer(write_config, start_training, tmp_path):
    run = RunFolder(tmp_path / "run")
    config = write_config(run.root, schedule={"length": "60 epochs"})
    first = start_training(config, **ALONE)
    wait_for(lambda: len(steps(run)) > 2, first)
    second = start_training(config, **ALONE)
    output, _ = second.communicate(timeout=120)
    assert second.returncode == 1, output
    assert f"the run in {run.root} has a launcher, process {first.pid} on " in output
    assert "Traceback" not in output
    zero = DEEPSPEED_FILES / "zero0.json"
    by_hand = subprocess.run(
        [sys.executable, "-m", "smdt.train", "--config", config, "--deepspeed_config", zero],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert by_hand.returncode == 1, by_hand.stderr
    assert "has a launcher, process" in by_hand.stderr
    assert run.read_state()["status"] == "running"
    assert first.poll() is None
    run.stop.touch()
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 75, output
    assert set(Counter(steps(run)).values()) == {1}
