"""Run by `deepspeed` on every rank: what steps make of the weights, with and without switches.

Arguments: YAML of the run, folder of the DeepSpeed files, where rank 0 writes its findings as JSON.
"""

import json
import sys
from contextlib import closing
from pathlib import Path

import torch
import torch.distributed as dist

from smdt.stages import config as configuration
from smdt.stages.registry import make_stage
from smdt.stages.retrieval.config import RetrievalConfig
from smdt.stages.setup import open_engines, open_loader
from smdt.telemetry.metrics import TrainingMetrics
from smdt.training.checkpoints.run_folder import RunFolder
from smdt.training.deepspeed.engine import init_distributed
from smdt.training.loop.stage import StepContext

STEPS = 3
LAYER_DECAY = 0.5


def weights_after(
    config: RetrievalConfig, folder: Path, zero: int, steps: int, chunks: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Full weights after some steps from the seed's."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(config.run.seed)
    stage = make_stage(config)
    settings = configuration.load_deepspeed(folder / f"zero{zero}.json")
    engines = open_engines(config, settings, stage, world_size)
    metrics = TrainingMetrics("test", "retrieval", rank)
    loader = open_loader(config, RunFolder(config.run.out), metrics, rank, world_size, device)
    with closing(loader.stream(loader.start, epochs=1)) as stream:
        for step, batch in zip(range(steps), stream, strict=False):
            context = StepContext(step, config.run.seed, rank, world_size, chunks, device, 1.0)
            stage.step(engines, batch, context)
    return next(iter(engines.values())).full_weights()


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Over all weights."""
    assert set(a) == set(b)
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def mean_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Over all weights."""
    return float(torch.cat([(a[name] - b[name]).abs().flatten() for name in a]).mean())


def findings(config: RetrievalConfig, folder: Path, zero: int, device: torch.device) -> dict:
    """Differences that switches make, and updates with a decay over layers beside those without."""

    def after(steps: int, chunks: int = 1, **model: object) -> dict[str, torch.Tensor]:
        changed = config.model_copy(update={"model": config.model.model_copy(update=model)})
        return weights_after(changed, folder, zero, steps, chunks, device)

    torch.manual_seed(config.run.seed)
    towers = make_stage(config).towers
    start, depths = towers.state_dict(), towers.depths()
    once = after(1)
    optimizer = config.optimizer.model_copy(update={"layer_decay": LAYER_DECAY})
    decayed = weights_after(
        config.model_copy(update={"optimizer": optimizer}), folder, zero, 1, 1, device
    )
    last = max(depths.values())
    scaled = {
        name: start[name] + LAYER_DECAY ** (last - depths[name]) * (once[name] - start[name])
        for name in start
    }
    plain = after(STEPS, chunks=2)
    return {
        "learned": largest_difference(plain, start),
        "checkpointing": largest_difference(
            plain, after(STEPS, chunks=2, gradient_checkpointing=True)
        ),
        "decay over layers": largest_difference(decayed, scaled),
        "update without decay": largest_difference(once, decayed),
    }


def compiled_findings(
    config: RetrievalConfig, folder: Path, zero: int, device: torch.device
) -> dict:
    """How far compiled steps are from eager ones, over what steps change."""
    torch.manual_seed(config.run.seed)
    start = make_stage(config).towers.state_dict()
    eager, compiled = (
        weights_after(
            config.model_copy(
                update={"model": config.model.model_copy(update={"compile": switch})}
            ),
            folder,
            zero,
            steps=1,
            chunks=2,
            device=device,
        )
        for switch in (False, True)
    )
    # Adam makes whole steps of rounding where a gradient is next to nothing: hence the mean.
    return {"compiled": mean_difference(eager, compiled) / mean_difference(eager, start)}


def main() -> None:
    """Write what was found of each ZeRO stage, of compiled steps alone if the YAML wants them."""
    yaml, folder, out = (Path(a) for a in sys.argv[1:] if not a.startswith("--local_rank"))
    device = init_distributed(120.0)
    torch.set_num_threads(1)
    config = configuration.load(yaml)
    assert isinstance(config, RetrievalConfig)
    # One ZeRO stage that parts no weights, and the one that does: compiling takes minutes.
    find, stages = (compiled_findings, (2, 3)) if config.model.compile else (findings, range(4))
    found = {f"zero{zero}": find(config, folder, zero, device) for zero in stages}
    if dist.get_rank() == 0:
        out.write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
