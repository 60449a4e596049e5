"""`smdt launch` on hosts that ssh reaches: ready or not, started, killed, stopped."""

import os
import signal

import numpy as np
import pytest

from smdt.training.run_folder import RunFolder
from tests.cluster.launches import TOTAL, losses, weights


@pytest.fixture(scope="session")
def undisturbed_folder(tmp_path_factory):
    return RunFolder(tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.fixture
def undisturbed(undisturbed_folder, launch, write_config):
    """A run on two hosts, ZeRO-2 and bf16, that nothing happens to."""
    if not undisturbed_folder.root.exists():
        launch(write_config(undisturbed_folder.root, precision="bf16")).wait()
    return undisturbed_folder


@pytest.mark.timeout(600)
def test_a_killed_rank_changes_nothing(undisturbed, launch, write_config, cluster, tmp_path):
    started = launch(write_config(tmp_path / "run", precision="bf16"))
    started.wait_for(lambda: started.steps >= 11)
    (rank,) = started.ranks(cluster.hosts[1])
    os.kill(rank, signal.SIGKILL)
    output = started.wait()
    assert "a process on b was ended by SIGKILL" in output
    assert started.left() == []
    assert losses(started.run) == losses(undisturbed)
    assert list(losses(started.run)) == list(range(1, TOTAL + 1))
    ours, theirs = weights(started.run), weights(undisturbed)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
