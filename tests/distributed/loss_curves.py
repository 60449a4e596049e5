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
from smdt.data.loader import TrainLoader
from smdt.data.order import DataState
from smdt.data.split import Split
from smdt.stages import make_stage
from smdt.telemetry.metrics import TrainingMetrics
from smdt.training.engine import Engine, deepspeed_settings, init_distributed
from smdt.training.stage import StepContext

STEPS = 30


def curve(config, zero_stage: int, chunks: int, folder: Path, device) -> list[float]:
    """Loss of the global batch at each step."""
    split = Split.open(config.data.shards, config.data.split)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(config.run.seed)
    stage = make_stage(config)
    settings = deepspeed_settings(
        configuration.load_deepspeed(folder / f"zero{zero_stage}.json"),
        global_batch=config.batch.global_batch,
        world_size=world_size,
        precision=config.precision,
        gradient_clipping=config.optimizer.gradient_clipping,
    )
    engines = {
        name: Engine(name, module, config.optimizer, settings)
        for name, module in stage.modules().items()
    }
    loader = TrainLoader(
        split,
        config.data,
        views=stage.views,
        global_batch=config.batch.global_batch,
        seed=config.run.seed,
        rank=rank,
        world_size=world_size,
        device=device,
        quarantine=Path("/dev/null"),
        metrics=TrainingMetrics("test", "retrieval", rank),
    )
    start = DataState(split.manifest_hash, config.run.seed, 0, 0, "")
    losses = []
    with closing(loader.stream(start, epochs=1 + STEPS // loader.steps_per_epoch)) as stream:
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
    curves = {
        f"zero{zero_stage}-chunks{chunks}": curve(config, zero_stage, chunks, folder, device)
        for zero_stage in range(4)
        for chunks in (1, 2)
    }
    if dist.get_rank() == 0:
        out.write_text(json.dumps(curves))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
