"""What rank 0 decides reaches the others, on real processes, and so does why it cannot."""

import os
import time

import pytest
import torch.multiprocessing as mp

from data_shards.base.errors import InputError, UserError
from smdt.training.ranks.environment import free_port
from smdt.training.ranks.rendezvous import Rendezvous

RANKS = 3
TIMEOUT_SECONDS = 3.0


def meet(rank, port, error, answers):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    meeting = Rendezvous(TIMEOUT_SECONDS)

    def decide():
        assert rank == 0
        time.sleep(2 * TIMEOUT_SECONDS)
        if error is not None:
            raise error("the cause")
        return "the decision"

    try:
        answers.put((rank, meeting.run_on_rank_zero(decide)))
    except UserError as told:
        answers.put((rank, (type(told), str(told))))
    if rank == 0 and error is None:
        time.sleep(1)  # a run keeps its meeting


@pytest.mark.slow  # processes that import torch
@pytest.mark.timeout(180)
@pytest.mark.parametrize("error", [None, UserError, InputError])
def test_all_ranks_hear_the_decision_however_long_it_takes(error):
    answers = mp.get_context("spawn").SimpleQueue()
    mp.spawn(meet, args=(free_port(), error, answers), nprocs=RANKS)
    heard = dict(answers.get() for _ in range(RANKS))
    wanted = "the decision" if error is None else (error, "the cause")
    assert heard == dict.fromkeys(range(RANKS), wanted)
