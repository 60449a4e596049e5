import os

import pytest

from data_shards.base.errors import InputError
from smdt.training.ranks.environment import rank_and_world_size

PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def unplaced(monkeypatch):
    """An environment that no launcher has made; what the test adds goes with it."""
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k not in PLACE})
    return os.environ


def test_the_place_of_a_process_is_what_its_launcher_says(unplaced):
    assert rank_and_world_size() == (0, 1)
    assert unplaced["MASTER_ADDR"] == "127.0.0.1"
    unplaced |= {"RANK": "3", "WORLD_SIZE": "8"}
    assert rank_and_world_size() == (3, 8)


def test_what_openmpi_says_is_said_in_torchs_words(unplaced):
    prefix = "OMPI_COMM_WORLD"
    unplaced |= {f"{prefix}_RANK": "5", f"{prefix}_SIZE": "8"}
    unplaced |= {f"{prefix}_LOCAL_RANK": "1", f"{prefix}_LOCAL_SIZE": "4"}
    with pytest.raises(InputError, match="add -x MASTER_ADDR=HOST"):
        rank_and_world_size()
    unplaced["MASTER_ADDR"] = "host-a"
    assert rank_and_world_size() == (5, 8)
    expected = {"LOCAL_RANK": "1", "LOCAL_SIZE": "4", "MASTER_PORT": "29500"}
    assert unplaced.items() >= {**expected, "MASTER_ADDR": "host-a"}.items()
