"""PyTorch 2.11, the oldest that the wheel allows, lacks some names of `torch.distributed`."""

import pytest
import torch
import torch.distributed as dist

from smdt.training.deepspeed.collectives import CollectiveTimer
from smdt.training.deepspeed.patches import COLLECTIVES
from smdt.training.ranks.gathering import all_gather_rows

NEWER = ("all_gather_single", "reduce_scatter_single")


@pytest.fixture
def older(monkeypatch):
    for name in COLLECTIVES:  # so that they are put back
        monkeypatch.setattr(dist, name, getattr(dist, name))
    for name in NEWER:
        monkeypatch.delattr(dist, name)


def test_collectives_that_there_are_can_be_watched(older, tmp_path):
    collectives = CollectiveTimer()
    collectives.watch()
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        dist.all_reduce(torch.ones(1))
    finally:
        dist.destroy_process_group()
    assert len(collectives.take()) == 1


def test_ranks_gather_by_the_older_name(older, monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(
        dist, "all_gather_into_tensor", lambda out, own: out.copy_(torch.cat([own, -own]))
    )
    assert all_gather_rows(torch.ones(3, 2)).tolist() == [[1, 1]] * 3 + [[-1, -1]] * 3
