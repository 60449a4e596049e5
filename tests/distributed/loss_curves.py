"""Run by `deepspeed` on every rank: the loss curve of each ZeRO stage and chunk count.

Arguments: YAML of the run, folder of the DeepSpeed files, where rank 0 writes the curves as JSON.
"""

import json
import sys
from contextlib import closing
from pathlib import Path

import torch
import torch.distributed as dist

from smdt import config as configuration
from smdt.stages import make_stage
from smdt.telemetry.metrics import TrainingMetrics
from smdt.train import open_engines, open_loader
from smdt.training.engine import init_distributed
from smdt.training.run_folder import RunFolder
from smdt.training.stage import StepContext

STEPS = 30


def curve(config, zero_stage: int, chunks: int, folder: Path, device) -> list[float]:
    """Loss of the global batch at each step."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(config.run.seed)
    stage = make_stage(config)
    settings = configuration.load_deepspeed(folder / f"zero{zero_stage}.json")
    engines = open_engines(config, settings, stage, world_size)
    metrics = TrainingMetrics("test", "retrieval", rank)
    loader = open_loader(config, RunFolder(config.run.out), metrics, rank, world_size, device)
    losses = []
    with closing(loader.stream(loader.start, epochs=1 + STEPS // loader.steps_per_epoch)) as stream:
        for step, batch in zip(range(STEPS), stream, strict=False):
            context = StepContext(step, config.run.seed, rank, world_size, chunks, device, 1.0)
            share = stage.step(engines, batch, context)["loss"]
            dist.all_reduce(share)
            losses.append(float(share))
    return losses


def main() -> None:
    """Write all curves."""
    yaml, folder, out = (Path(a) for a in sys.argv[1:] if not a.startswith("--local_rank"))
    device = init_distributed(120.0)
    torch.set_num_threads(1)
    config = configuration.load(yaml)
    # DeepSpeed scales no loss of fp16 on ZeRO 0.
    zero_stages = range(1, 4) if config.precision == "fp16" else range(4)
    curves = {
        f"zero{zero_stage}-chunks{chunks}": curve(config, zero_stage, chunks, folder, device)
        for zero_stage in zero_stages
        for chunks in (1, 2)
    }
    if dist.get_rank() == 0:
        out.write_text(json.dumps(curves))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
