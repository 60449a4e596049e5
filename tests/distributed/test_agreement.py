"""What ranks exchange besides gradients, on real processes."""

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from smdt.training.deepspeed.collectives import CollectiveTimer
from smdt.training.deepspeed.device_work import DeviceScalars
from smdt.training.loop.step_status import StepStatusReducer
from smdt.training.ranks.gathering import all_gather_ragged, pieces

RANKS = 3


def rank_main(rank: int, folder: Path) -> None:
    """Check everything on one rank; a failed assertion fails the test."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=RANKS
    )
    # Ranks hold 2, 3 and 0 rows.
    counts = [2, 3, 0]
    rows = torch.full((counts[rank], 2), float(rank))
    expected = torch.cat([torch.full((n, 2), float(r)) for r, n in enumerate(counts)])
    assert torch.equal(all_gather_ragged(rows), expected)
    ids = torch.full((counts[rank],), rank)
    seen = [[each.clone() for each in piece] for piece in pieces(rows, ids)]
    assert [len(of_rows) for of_rows, _ in seen] == counts
    assert torch.equal(torch.cat([of_rows for of_rows, _ in seen]), expected)
    assert torch.cat([of_ids for _, of_ids in seen]).tolist() == [0, 0, 1, 1, 1]

    control = StepStatusReducer()
    share = DeviceScalars({"loss": torch.tensor(float(rank + 1))})
    assert control.post(1, share, stop=False) is None, "the step before the first"
    first = control.post(2, share, stop=rank == 1)
    assert (first.step, first.stop, first.finite) == (1, False, True)
    assert first.losses == {"loss": 6.0}
    broken = DeviceScalars({"loss": torch.tensor(float("nan") if rank == 2 else 1.0)})
    second = control.post(3, broken, stop=False)
    assert (second.step, second.stop, second.finite) == (2, True, True)
    third = control.collect()
    assert (third.step, third.stop, third.finite) == (3, False, False)
    assert control.collect() is None, "each agreement is read once"
    check_waits(rank)
    dist.barrier()
    dist.destroy_process_group()


def check_waits(rank: int) -> None:
    """The rank that comes late waits least, in whatever collective ranks meet."""
    collectives = CollectiveTimer()
    collectives.watch()
    collectives.take()
    late = rank == 1
    for meet in (
        lambda: dist.all_reduce(torch.ones(1)),
        lambda: dist.all_gather([torch.ones(1) for _ in range(RANKS)], torch.ones(1)),
        lambda: dist.all_reduce(torch.ones(1), async_op=True).wait(),
        dist.barrier,
    ):
        dist.barrier()
        collectives.take()
        time.sleep(0.3 if late else 0.0)
        meet()
        waited = sum(watch.seconds() for watch in collectives.take())
        assert waited < 0.15 if late else waited > 0.25, (meet, waited)


@pytest.mark.timeout(180)
def test_ranks_gather_uneven_rows_and_agree_one_step_late(tmp_path):
    mp.spawn(rank_main, args=(tmp_path,), nprocs=RANKS)
