"""fp16's loss scale, which is found by trial, is part of what a run resumes with."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from smdt.stages.config import load_deepspeed
from smdt.training.deepspeed.engine import Engine
from smdt.training.deepspeed.optimizer import OptimizerConfig
from smdt.training.deepspeed.settings import deepspeed_settings
from smdt.training.ranks.environment import free_port
from tests.distributed.runs import DEEPSPEED_FILES, join_ranks

RANKS = 2
STEPS = 12
SAVED_AFTER = 7
FIRST_POWER = 20
"""Of 2: the first scales are too large for fp16."""
WINDOW = 4
"""Steps without overflow after which the scale doubles."""


def open_engine(zero: int) -> Engine:
    torch.manual_seed(0)
    user = load_deepspeed(DEEPSPEED_FILES / f"zero{zero}.json")
    scale = {"initial_scale_power": FIRST_POWER, "loss_scale_window": WINDOW, "hysteresis": 1}
    settings = deepspeed_settings(
        {**user, "fp16": {**user["fp16"], **scale}},
        global_batch=8,
        world_size=RANKS,
        precision="fp16",
        gradient_clipping=1.0,
    )
    module = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    return Engine("small", module, OptimizerConfig(learning_rate=0.01), settings)


def train(engine: Engine, steps: range) -> list[tuple[float, float]]:
    """The loss scale and the count of skipped steps after each."""
    found = []
    for step in steps:
        rows = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        mine = rows[dist.get_rank() :: RANKS].half()
        engine.backward(engine.forward(mine).float().square().sum() / 8)
        engine.step(1.0)
        found.append((engine.loss_scale, float(engine.skipped_steps)))
    return found


def rank_main(rank: int, port: int, folder: Path) -> None:
    from deepspeed.accelerator import get_accelerator

    join_ranks(rank, RANKS, port)
    # The CPU computes in fp16 and only its accelerator says that it cannot.
    get_accelerator().is_fp16_supported = lambda: True
    for zero in (1, 2, 3):
        whole = open_engine(zero)
        undisturbed = train(whole, range(STEPS))
        scales, skipped = zip(*undisturbed, strict=True)
        assert 0 < skipped[-1] < STEPS - WINDOW, "some overflow, some do not"
        assert max(scales) <= 2**FIRST_POWER
        assert any(after > before for before, after in pairwise(scales))

        first = open_engine(zero)
        assert train(first, range(SAVED_AFTER)) == undisturbed[:SAVED_AFTER]
        first.save(folder / str(zero))
        second = open_engine(zero)
        second.load(folder / str(zero))
        assert second.loss_scale == scales[SAVED_AFTER - 1]
        assert train(second, range(SAVED_AFTER, STEPS)) == undisturbed[SAVED_AFTER:]
        expected = whole.full_weights()
        for name, weight in second.full_weights().items():
            assert torch.equal(weight, expected[name]), f"ZeRO {zero}: {name}"
    dist.destroy_process_group()


@pytest.mark.timeout(300)
def test_a_resumed_run_goes_on_with_its_loss_scale(tmp_path):
    mp.spawn(rank_main, args=(free_port(), tmp_path), nprocs=RANKS)
