"""Whatever a checkpoint was doing when its run was killed, nothing that was saved is lost."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.run_folder import RunFolder
from tests.distributed.runs import kill, ranks_of, wait_for

TOTAL = 24
SECTIONS = {"checkpoint": {"every": "1 steps"}}


def half_written(unpublished: Path) -> bool:
    return not (unpublished / checkpoint.CONFIG).exists()


def being_published(unpublished: Path) -> bool:
    return (unpublished / checkpoint.CONFIG).exists()


def kill_in(run: RunFolder, config: Path, moment: Callable[[Path], bool], process) -> None:
    """Kill -9 all ranks while there is a checkpoint in that moment, and one before it."""
    leftovers = {path.stat().st_ino for path in run.checkpoints.glob("step-*.tmp")}

    def seen() -> bool:
        for path in run.checkpoints.glob("step-*.tmp"):
            with suppress(FileNotFoundError):  # it may be published by now
                if path.stat().st_ino not in leftovers and moment(path):
                    return True
        return False

    wait_for(lambda: len(ranks_of(config)) == 2, process)
    pids = ranks_of(config)
    end = time.monotonic() + 120
    while True:
        assert time.monotonic() < end, "never seen"
        if not seen():
            time.sleep(0.001)
            continue
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        if seen() and checkpoint.published(run.checkpoints):
            break
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    kill(pids)
    process.communicate(timeout=120)


def losses(run: RunFolder) -> dict[int, float]:
    return {r["step"]: r["losses"]["loss"] for r in run.read_metrics() if "losses" in r}


def final_weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.folder_of(run.checkpoints, TOTAL) / checkpoint.WEIGHTS)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_killed_while_it_saves_a_run_loses_nothing(
    write_config, start_training, train_to_end, tmp_path
):
    undisturbed = RunFolder(tmp_path / "undisturbed")
    train_to_end(write_config(undisturbed.root, **SECTIONS))
    run = RunFolder(tmp_path / "run")
    config = write_config(run.root, **SECTIONS)
    for moment in (half_written, being_published, being_published):
        process = start_training(config)
        kill_in(run, config, moment, process)
        newest = checkpoint.published(run.checkpoints)[0]
        assert checkpoint.integrity_error(newest) == ""
        # The step that was being saved, or the one after it, is the last that was told of.
        assert checkpoint.step_of(newest) >= max(losses(run)) - 2
        assert max(losses(run)) < TOTAL
    train_to_end(config)
    assert sum(each["event"] == "started" for each in run.read_history()) == 4
    assert losses(run) == losses(undisturbed)
    ours, theirs = final_weights(run), final_weights(undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert list(run.checkpoints.glob("step-*.tmp")) == []
    saved = [each for each in run.read_history() if each["event"] == "saved"]
    assert saved[-1]["step"] == TOTAL
    assert saved[-1]["bytes"] > 0
