"""Tables by embedding on two ranks: the table of one rank, and no rank holds the gallery."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from smdt.data.neighbours import NeighbourTable
from smdt.data.order import DataState, OrderConfig, evaluation_slice
from smdt.evaluation.recall import Piece, nearest_at_other_places
from smdt.training.loop.mining import HardNegativeMiner
from smdt.training.loop.stage import StepContext
from smdt.training.ranks.gathering import pieces

SAMPLES, DIM, K, RANKS = 600, 64, 6, 2
BLOCK = 32


class Largest(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that an operation made."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, list | tuple) else [made]:
            if isinstance(each, torch.Tensor):
                self.bytes = max(self.bytes, each.untyped_storage().nbytes())
        return made


def descriptors() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Small whole numbers, whose scores are exact and often equal, and places."""
    rng = np.random.default_rng(0)
    ground, aerial = (rng.integers(1, 3, (SAMPLES, DIM)).astype(np.float32) for _ in range(2))
    return ground, aerial, rng.integers(0, SAMPLES // 2, SAMPLES)


class FakeSplit:
    name, root = "train", "nowhere"

    def __len__(self) -> int:
        return SAMPLES


class FakeLoader:
    split = FakeSplit()

    def next_epoch(self, state):
        return state.epoch, True


class FakeStage:
    """Finds neighbours of this rank's samples by descriptors that are given."""

    def neighbours(self, context, split, count):
        own = evaluation_slice(SAMPLES, context.rank, context.world_size)
        ground, aerial, place = (torch.from_numpy(each) for each in descriptors())
        ids = torch.arange(own.start, own.stop)
        of_ranks = pieces(ids, aerial[ids].clone())
        gallery = (Piece(items, place[of_items], of_items) for of_items, items in of_ranks)
        query, shown = ground[ids].clone(), place[ids, None]
        with Largest() as largest:
            near = nearest_at_other_places(query, shown, gallery, count, BLOCK)
        self.bytes = largest.bytes
        return near.int()


def make_table(rank: int, folder: Path) -> tuple[str, int]:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=RANKS
    )
    order = {"policy": "hard", "hard": {"refresh": 1, "map_epochs": 0, "neighbours": K}}
    context = StepContext(0, 0, rank, RANKS, 1, torch.device("cpu"))
    stage = FakeStage()
    mining = HardNegativeMiner(
        OrderConfig.model_validate(order), FakeLoader(), stage, context, folder
    )
    period = mining.period(DataState("", 0, 0, 0), 5)
    dist.barrier()
    dist.destroy_process_group()
    return period.table.sha256, stage.bytes


@pytest.mark.slow
def test_two_ranks_make_the_table_of_a_plain_sort_and_hold_a_piece_each(tmp_path):
    with multiprocessing.get_context("spawn").Pool(RANKS) as pool:
        found = pool.starmap(make_table, [(rank, tmp_path) for rank in range(RANKS)])
    (sha256, held), (other, other_held) = found
    assert sha256 == other
    ground, aerial, place = descriptors()
    scores = ground @ aerial.T
    expected = [
        [i for i in np.argsort(-scores[row], kind="stable") if place[i] != place[row]][:K]
        for row in range(SAMPLES)
    ]
    assert NeighbourTable.load(tmp_path, sha256).samples.tolist() == expected
    piece = SAMPLES // RANKS * DIM * 4
    assert max(held, other_held) <= piece
