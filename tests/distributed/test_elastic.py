"""A run goes on with other numbers of ranks, in mid-epoch, with the losses of one that did not."""

import json
import signal
import socket

import pytest

from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.run_folder import RunFolder
from tests.distributed.runs import WITHOUT_DROPOUT, kill_ranks, wait_for

TOTAL = 20  # 4 epochs of 5 steps: batches of 12 pairs
SECTIONS = {
    "batch": {"global": 12},
    "schedule": {"length": "4 epochs", "warmup_steps": 4},
    "checkpoint": {"every": "2 steps"},
    # Adam divides by the root of tiny gradients, which makes rounding grow; a larger epsilon not. A
    # ReLU that rounding takes across zero changes a gradient by a part in 10,000: a small rate.
    "optimizer": {"learning_rate": 3e-5, "epsilon": 1e-4},
}
RETRIEVAL = {"model": {"dropout": 0.0, "width": 64, "layers": 2}}
ALIGNMENT = {"stage": "alignment", "model": {"generator_width": 2, "discriminator_width": 2}}
HARD = ("data.order.policy=hard", "data.order.hard.refresh=1", "data.order.hard.group=4")


def losses(run: RunFolder) -> dict[int, float]:
    return {r["step"]: r["losses"]["loss"] for r in run.read_metrics() if "losses" in r}


def log_of(run: RunFolder) -> str:
    return (run.logs / "rank-00000.log").read_text()


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("sections", "zero", "order"),
    [
        (RETRIEVAL, 3, HARD),
        pytest.param(RETRIEVAL, 0, (), marks=pytest.mark.full),
        pytest.param(RETRIEVAL, 2, HARD, marks=pytest.mark.full),
        pytest.param({**RETRIEVAL, "precision": "bf16"}, 2, (), marks=pytest.mark.full),
        pytest.param(WITHOUT_DROPOUT, 1, (), marks=pytest.mark.full),
        pytest.param(ALIGNMENT, 2, (), marks=pytest.mark.full),
    ],
    ids=lambda value: value.get("stage", "retrieval") if isinstance(value, dict) else None,
)
def test_2_ranks_then_1_then_3(
    sections, zero, order, write_config, start_training, train_to_end, tmp_path
):
    whole = RunFolder(tmp_path / "whole")
    train_to_end(write_config(whole.root, **{**sections, **SECTIONS}), *order, zero=zero)

    run = RunFolder(tmp_path / "run")
    config = write_config(run.root, **{**sections, **SECTIONS})
    process = start_training(config, *order, zero=zero, ranks=2)
    wait_for(lambda: len(losses(run)) >= 7, process)
    kill_ranks(config)
    process.communicate(timeout=120)
    (run.universal / "step-00000002-of-a-killed-conversion.tmp").mkdir(parents=True)

    process = start_training(config, *order, zero=zero, ranks=1)
    wait_for(lambda: max(losses(run), default=0) >= 12, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert not run.universal.exists(), "the run has a newer checkpoint"
    stopped = run.read_state()["step"]
    assert 12 <= stopped < TOTAL

    train_to_end(config, *order, zero=zero, ranks=3)
    assert list(losses(run)) == list(range(1, TOTAL + 1))
    # in bf16 a sum over another number of ranks is rounded elsewhere, at its 8 bits
    rounding = 0.02 if sections.get("precision") == "bf16" else 1e-5
    assert losses(run) == pytest.approx(losses(whole), rel=rounding)
    conversions = 0 if zero == 0 else 2
    assert log_of(run).count("was written by another number of ranks") == conversions
    newest = checkpoint.load_progress(checkpoint.published(run.checkpoints)[0])
    assert (newest.step, newest.world_size) == (TOTAL, 3)
    environment = json.loads(run.environment.read_text())
    assert environment["hosts"] == [socket.gethostname()] * environment["world_size"]
    assert environment["world_size"] == 3

    refused = train_to_end(config, *order, zero=(zero + 1) % 4, exit_code=2)
    assert f"was written with ZeRO {zero}" in refused
    assert run.read_state()["status"] == "done", "what is refused leaves the run as it was"
