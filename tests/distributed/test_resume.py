"""Killed at any moment, the same command again reaches the same weights to the bit."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.run_folder import RunFolder
from tests.distributed.runs import SEGMENTATION, kill_ranks, wait_for

TOTAL = 24  # 3 epochs of 8 steps
SHUFFLE = ("data.order.policy=shuffle",)
TURNED = {"turn": True, "mirror": True}
ALIGNMENT = {
    "stage": "alignment",
    "model": {"generator_width": 2, "discriminator_width": 2, "feedback_loops": 2},
    "optimizer": {"learning_rate": 0.001},
    "augment": TURNED,
}
TURNED_SEGMENTATION = {**SEGMENTATION, "batch": {"global": 8, "chunks": 2}, "augment": TURNED}
HARD = ("data.order.policy=hard", "data.order.hard.refresh=1", "data.order.hard.group=4")
CURRICULUM = (*HARD, "data.order.hard.random_epochs=1", "data.order.hard.map_epochs=0")
INFO_NCE = {"loss": {"name": "info_nce"}}


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    folder = checkpoint.folder_of(RunFolder(run).checkpoints, TOTAL)
    assert checkpoint.integrity_error(folder) == ""
    return load_file(folder / checkpoint.WEIGHTS)


def losses(run: Path) -> dict[int, float]:
    records = RunFolder(run).read_metrics()
    return {r["step"]: r["losses"]["loss"] for r in records if "losses" in r}


def assert_same(run: Path, undisturbed: Path) -> None:
    ours, theirs = final_weights(run), final_weights(undisturbed)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert losses(run) == losses(undisturbed)
    assert list(losses(run)) == list(range(1, TOTAL + 1))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("sections", "zero", "precision", "order"),
    [
        (INFO_NCE, 2, "bf16", HARD),
        pytest.param({}, 0, "fp32", SHUFFLE, marks=pytest.mark.full),
        pytest.param({}, 1, "bf16", SHUFFLE, marks=pytest.mark.full),
        pytest.param({}, 3, "fp32", HARD, marks=pytest.mark.full),
        pytest.param(INFO_NCE, 3, "bf16", CURRICULUM, marks=pytest.mark.full),
        pytest.param(ALIGNMENT, 3, "bf16", SHUFFLE, marks=pytest.mark.full),
        pytest.param(ALIGNMENT, 0, "fp32", SHUFFLE, marks=pytest.mark.full),
        pytest.param(ALIGNMENT, 2, "bf16", SHUFFLE, marks=pytest.mark.full),
        pytest.param(TURNED_SEGMENTATION, 3, "bf16", SHUFFLE, marks=pytest.mark.full),
        pytest.param(TURNED_SEGMENTATION, 1, "fp32", SHUFFLE, marks=pytest.mark.full),
    ],
    ids=lambda value: value.get("stage", "retrieval") if isinstance(value, dict) else None,
)
def test_killed_or_stopped_the_run_reaches_the_same_weights(
    sections, zero, precision, order, write_config, start_training, train_to_end, tmp_path
):
    undisturbed = tmp_path / "undisturbed"
    sections = {**sections, "precision": precision}
    train_to_end(write_config(undisturbed, **sections), *order, zero=zero)

    run = RunFolder(tmp_path / "disturbed")
    config = write_config(run.root, **sections)
    process = start_training(config, *order, zero=zero)
    # In the middle of the second epoch, a few steps behind the last checkpoint.
    wait_for(lambda: len(losses(run.root)) >= 11, process)
    kill_ranks(config)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert 9 <= max(losses(run.root)) < TOTAL

    process = start_training(config, *order, zero=zero)
    wait_for(lambda: max(losses(run.root), default=0) >= 14, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    state = json.loads(run.state.read_text())
    assert state["status"] == "preempted"
    assert state["step"] < TOTAL

    train_to_end(config, *order, zero=zero)
    assert run.read_state()["status"] == "done"
    assert_same(run.root, undisturbed)
    kept = [checkpoint.load_progress(folder) for folder in checkpoint.published(run.checkpoints)]
    tables = {path.stem for path in run.neighbours.iterdir()}
    assert tables == {progress.data.table_hash for progress in kept} - {""}
    assert bool(tables) == (order != SHUFFLE)


@pytest.mark.full
@pytest.mark.timeout(300)
def test_a_finished_run_has_nothing_left_to_do(write_config, train_to_end, tmp_path):
    run = RunFolder(tmp_path / "run")
    config = write_config(run.root)
    train_to_end(config)
    files = (run.metrics, run.checkpoints / "latest", run.evaluation)
    before = [file.read_bytes() for file in files]
    train_to_end(config)
    assert [file.read_bytes() for file in files] == before
    assert run.read_state()["status"] == "done"
