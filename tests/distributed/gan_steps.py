"""Run by `deepspeed` on every rank: ten steps of the GAN for each case.

Arguments: YAML of the run, folder of the DeepSpeed files, where rank 0 writes the weights.
"""

import sys
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from safetensors.torch import save_file

from smdt.stages import config as configuration
from smdt.stages.alignment.config import AlignmentConfig
from smdt.stages.registry import make_stage
from smdt.stages.setup import open_engines, open_loader
from smdt.telemetry.metrics import TrainingMetrics
from smdt.training.checkpoints.run_folder import RunFolder
from smdt.training.deepspeed.engine import init_distributed
from smdt.training.deepspeed.settings import Precision
from smdt.training.loop.stage import StepContext

STEPS = 10
OVERFLOWING = 24
"""Power of 2 by which gradients are scaled beyond fp16."""


@dataclass(frozen=True)
class Case:
    """How the steps are made."""

    zero: int
    chunks: int
    loops: int = 1
    precision: Precision = "fp32"
    scale_power: int = 8
    """Power of 2 that fp16 scales the loss with at first."""

    @property
    def file(self) -> str:
        """Where the weights are written."""
        values = (f"{name}={value}" for name, value in asdict(self).items())
        return f"{'-'.join(values)}.safetensors"


CASES = [
    *(Case(zero, chunks) for zero in range(4) for chunks in (1, 2)),
    # Feedback runs the discriminators' module in the middle of the generators' step.
    *(Case(zero, 2, loops=2) for zero in (0, 2, 3)),
    *(Case(zero, 2, precision="bf16") for zero in range(4)),
    *(Case(zero, 2, precision="fp16") for zero in (1, 2, 3)),
    *(Case(zero, 2, precision="fp16", scale_power=OVERFLOWING) for zero in (1, 2, 3)),
]


def with_loops(config: AlignmentConfig, loops: int) -> AlignmentConfig:
    """The same run with another number of feedback loops."""
    model = config.model.model_copy(update={"feedback_loops": loops})
    return config.model_copy(update={"model": model})


def weights(config: AlignmentConfig, case: Case, folder: Path, device) -> dict[str, torch.Tensor]:
    """Weights of both engines after `STEPS` steps, all losses, and what loss scaling did."""
    config = with_loops(config, case.loops).model_copy(update={"precision": case.precision})
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(config.run.seed)
    stage = make_stage(config)
    settings = configuration.load_deepspeed(folder / f"zero{case.zero}.json")
    settings["fp16"]["initial_scale_power"] = case.scale_power
    if case.zero == 3:
        # Else these small parameters would never be partitioned.
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    engines = open_engines(config, settings, stage, world_size)
    metrics = TrainingMetrics("test", config.stage, rank)
    loader = open_loader(config, RunFolder(config.run.out), metrics, rank, world_size, device)
    found: dict[str, torch.Tensor] = {}
    with closing(loader.stream(loader.start, epochs=1 + STEPS // loader.steps_per_epoch)) as stream:
        for step, batch in zip(range(STEPS), stream, strict=False):
            context = StepContext(step, config.run.seed, rank, world_size, case.chunks, device, 1.0)
            terms = stage.step(engines, batch, context)
            for term, share in terms.items():
                dist.all_reduce(share)
                found[f"losses.{step}.{term}"] = share
    for name, engine in engines.items():
        found[f"skipped.{name}"] = torch.tensor(float(engine.skipped_steps))
        found[f"scale.{name}"] = torch.tensor(engine.loss_scale)
        found |= {f"{name}.{key}": value for key, value in engine.full_weights().items()}
    return found


def main() -> None:
    """Write all weights."""
    yaml, folder, out = (Path(a) for a in sys.argv[1:] if not a.startswith("--local_rank"))
    device = init_distributed(120.0)
    torch.set_num_threads(1)
    config = configuration.load(yaml)
    # The CPU computes in fp16 and only its accelerator says that it cannot.
    get_accelerator().is_fp16_supported = lambda: True
    for case in CASES:
        found = weights(config, case, folder, device)
        if dist.get_rank() == 0:
            save_file(found, out / case.file)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
