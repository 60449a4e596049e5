"""Ranks of this machine for a benchmark, and a network of any size for them to hold."""

import os
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from smdt.stages.config import load_deepspeed
from smdt.training.deepspeed.engine import Engine, init_distributed
from smdt.training.deepspeed.optimizer import OptimizerConfig
from smdt.training.deepspeed.settings import deepspeed_settings
from smdt.training.ranks.environment import free_port

DEEPSPEED_FILES = Path(__file__).parent.parent / "configs" / "deepspeed"
WIDTH = 1024


class Layers(nn.Module):
    """Square layers without biases, one after another."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(count)))

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor]:
        """Map [B, WIDTH] to as much."""
        return (self.layers(rows),)


def run_ranks(ranks: int, work: Callable[..., None], *arguments: object) -> None:
    """Call `work(*arguments)` in a process group of this many processes, one thread each.

    Raises:
        RuntimeError: one of them failed.
    """
    port, spawn = free_port(), get_context("spawn")
    processes = [
        spawn.Process(target=_rank_main, args=(rank, ranks, port, work, arguments))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"a rank failed: {[process.exitcode for process in processes]}")


def _rank_main(
    rank: int, ranks: int, port: int, work: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_SIZE": ranks}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    init_distributed(600.0)
    work(*arguments)
    dist.barrier()
    dist.destroy_process_group()


def open_engine(zero: int, layers: int) -> Engine:
    """Wrap this many layers in an unpatched DeepSpeed engine, in bf16."""
    ranks = dist.get_world_size()
    settings = deepspeed_settings(
        load_deepspeed(DEEPSPEED_FILES / f"zero{zero}.json"),
        global_batch=2 * ranks,
        world_size=ranks,
        precision="bf16",
        gradient_clipping=1.0,
    )
    return Engine("layers", Layers(layers), OptimizerConfig(), settings)


def step(engine: Engine) -> None:
    """Make a step on few rows, so that activations take almost no memory."""
    (outputs,) = engine.forward(torch.ones(2, WIDTH, dtype=torch.bfloat16))
    engine.backward(outputs.float().square().mean())
    engine.step(1.0)
