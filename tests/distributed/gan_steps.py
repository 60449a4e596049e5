"""Run by `deepspeed` on every rank: ten steps of the GAN on each ZeRO stage and chunk count.

Arguments: YAML of the run, folder of the DeepSpeed files, where rank 0 writes the weights.
"""

import sys
from contextlib import closing
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from smdt import config as configuration
from smdt.stages import make_stage
from smdt.telemetry.metrics import TrainingMetrics
from smdt.train import open_engines, open_loader
from smdt.training.engine import init_distributed
from smdt.training.run_folder import RunFolder
from smdt.training.stage import StepContext

STEPS = 10


def weights(config, zero_stage: int, chunks: int, folder: Path, device) -> dict[str, torch.Tensor]:
    """Weights of both engines after `STEPS` steps, and the loss terms of each step."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(config.run.seed)
    stage = make_stage(config)
    settings = configuration.load_deepspeed(folder / f"zero{zero_stage}.json")
    if zero_stage == 3:
        # Else these small parameters would never be partitioned.
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    engines = open_engines(config, settings, stage, world_size)
    metrics = TrainingMetrics("test", config.stage, rank)
    loader = open_loader(config, RunFolder(config.run.out), metrics, rank, world_size, device)
    found: dict[str, torch.Tensor] = {}
    with closing(loader.stream(loader.start, epochs=1 + STEPS // loader.steps_per_epoch)) as stream:
        for step, batch in zip(range(STEPS), stream, strict=False):
            context = StepContext(step, config.run.seed, rank, world_size, chunks, device, 1.0)
            terms = stage.step(engines, batch, context)
            shares = torch.stack([terms[name] for name in sorted(terms)])
            dist.all_reduce(shares)
            found[f"losses.{step}"] = shares
    for name, engine in engines.items():
        found |= {f"{name}.{key}": value for key, value in engine.full_weights().items()}
    return found


def main() -> None:
    """Write all weights."""
    yaml, folder, out = (Path(a) for a in sys.argv[1:] if not a.startswith("--local_rank"))
    device = init_distributed(120.0)
    torch.set_num_threads(1)
    config = configuration.load(yaml)
    for zero_stage in range(4):
        for chunks in (1, 2):
            found = weights(config, zero_stage, chunks, folder, device)
            if dist.get_rank() == 0:
                save_file(found, out / f"zero{zero_stage}-chunks{chunks}.safetensors")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
