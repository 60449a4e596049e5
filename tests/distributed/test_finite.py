"""Steps that are not finite change nothing on any rank, and too many in a row end the run."""

import re

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import nn

from benchmarks.kernels import Kernels
from smdt.stages.config import load_deepspeed
from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.run_folder import RunFolder
from smdt.training.deepspeed.engine import Engine
from smdt.training.deepspeed.optimizer import OptimizerConfig
from smdt.training.deepspeed.settings import deepspeed_settings
from smdt.training.ranks.environment import free_port
from tests.distributed.runs import DEEPSPEED_FILES, join_ranks

RANKS = 2
BROKEN = 2
"""The step in which one rank's data is not finite."""


def weights_after(steps: list[int], zero: int, precision: str, value: float) -> dict:
    """Train a small module on one rank's rows of random data; return the weights and the count."""
    torch.manual_seed(0)
    settings = deepspeed_settings(
        load_deepspeed(DEEPSPEED_FILES / f"zero{zero}.json"),
        global_batch=8,
        world_size=RANKS,
        precision=precision,
        gradient_clipping=1.0,
    )
    module = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    engine = Engine("small", module, OptimizerConfig(learning_rate=0.01), settings)
    rank = dist.get_rank()
    for step in steps:
        rows = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))[rank::RANKS]
        if step == BROKEN and rank == 1:
            rows[1, 3] = value
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        engine.backward(engine.forward(rows.to(dtype)).float().square().sum() / 8)
        engine.step(1.0)
    return engine.full_weights() | {"skipped": torch.tensor(float(engine.skipped_steps))}


def rank_main(rank: int, port: int) -> None:
    join_ranks(rank, RANKS, port)
    for zero in range(4):
        for precision, value in (("fp32", float("nan")), ("bf16", float("inf"))):
            broken = weights_after([0, 1, BROKEN, 3, 4], zero, precision, value)
            without = weights_after([0, 1, 3, 4], zero, precision, value)
            case = f"ZeRO {zero}, {precision}"
            assert (broken.pop("skipped"), without.pop("skipped")) == (1, 0), case
            for name, weight in broken.items():
                assert torch.equal(weight, without[name]), f"{case}: {name}"
    dist.destroy_process_group()


@pytest.mark.timeout(300)
def test_a_step_that_is_not_finite_on_one_rank_is_as_if_it_had_not_been():
    mp.spawn(rank_main, args=(free_port(),), nprocs=RANKS)


def count_kernels(rank: int, port: int) -> None:
    join_ranks(rank, 1, port)
    for zero in range(4):
        settings = deepspeed_settings(
            load_deepspeed(DEEPSPEED_FILES / f"zero{zero}.json"),
            global_batch=2,
            world_size=1,
            precision="bf16",
            gradient_clipping=1.0,
        )
        module = nn.Sequential(*(nn.Linear(4, 4) for _ in range(50)))
        engine = Engine("deep", module, OptimizerConfig(), settings)
        for _ in range(2):  # the first step also makes the optimizer's state
            engine.backward(engine.forward(torch.randn(2, 4).bfloat16()).float().sum())
            with Kernels() as kernels:
                engine.step(1.0)
        assert sum(kernels.counts.values()) < 10 * len(list(module.parameters())), f"ZeRO {zero}"
    dist.destroy_process_group()


def test_infinities_are_not_looked_for_in_one_parameter_after_another():
    """A GPU would spend most of its step starting kernels."""
    mp.spawn(count_kernels, args=(free_port(),), nprocs=1)


@pytest.mark.timeout(300)
def test_a_run_that_finds_nothing_finite_ends_with_the_samples(
    write_config, train_to_end, tmp_path
):
    run = RunFolder(tmp_path / "run")
    config = write_config(
        run.root,
        # The rate grows with every step until weights overflow.
        optimizer={"learning_rate": 1e22, "gradient_clipping": 0.0},
        schedule={"length": "1000 steps", "warmup_steps": 1_000_000},
        checkpoint={"every": "1 steps"},
    )
    output = train_to_end(config, "run.max_lost_steps=2", exit_code=1)
    assert "is not finite on train-0" in output
    assert "of 3 steps in a row none could be made" in output

    *made, first, second, third = [r for r in run.read_metrics() if "losses" in r]
    assert made
    assert all(record["finite"] and "lost_keys" not in record for record in made)
    for record in (first, second, third):
        assert not record["finite"]
        keys = record["lost_keys"]
        assert len(set(keys)) == len(keys) == 8, "the global batch"
        assert all(re.fullmatch(r"train-\d{9}", key) for key in keys)
    assert third["lost_keys"][0] in run.read_state()["reason"]
    newest = checkpoint.published(run.checkpoints)[0]
    assert checkpoint.step_of(newest) >= second["step"]
    weights = load_file(newest / checkpoint.WEIGHTS)
    assert all(weight.isfinite().all() for weight in weights.values())
