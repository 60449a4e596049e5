"""Run by `deepspeed` on every rank: some steps of each stage on each ZeRO stage, and a checkpoint.

Arguments: folder of YAMLs, folder of the DeepSpeed files, folder of the runs, step at which to end.
Each run goes on from its newest checkpoint, whatever number of ranks wrote it. Without checkpoint
all steps are made as well, into `whole.json`.
"""

import json
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from smdt.stages import config as configuration
from smdt.stages.registry import make_stage
from smdt.stages.setup import open_engines, open_loader
from smdt.telemetry.metrics import TrainingMetrics
from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.checkpoint import Progress
from smdt.training.checkpoints.resume import ResumePoint, find_resume_point
from smdt.training.checkpoints.run_folder import RunFolder
from smdt.training.deepspeed.engine import Engine, init_distributed
from smdt.training.deepspeed.settings import deepspeed_settings
from smdt.training.loop.stage import StepContext

TOTAL = 12
ZERO_STAGES = range(4)


def settings_of(folder: Path, zero: int) -> dict:
    settings = configuration.load_deepspeed(folder / f"zero{zero}.json")
    if zero == 3:
        # Else these small parameters would never be partitioned.
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return settings


def origin_of(run: RunFolder, zero: int) -> ResumePoint:
    """What rank 0 finds; the others hear it."""
    found = [None]
    if dist.get_rank() == 0:
        origin = find_resume_point(run, "auto", zero, dist.get_world_size())
        if origin.universal and "small" in run.root.name:
            check_that_it_is_kept(run, origin, zero)
        found = [origin.to_json()]
    dist.broadcast_object_list(found, src=0)
    return ResumePoint.from_json(found[0])


def check_that_it_is_kept(run: RunFolder, origin: ResumePoint, zero: int) -> None:
    """The universal form is made once, and again when it is damaged."""
    made = (origin.states / checkpoint.FILES).stat().st_mtime_ns
    for harmed in (False, True):
        if harmed:
            next((origin.states / "small" / "zero").rglob("fp32.pt")).write_bytes(b"")
        assert find_resume_point(run, "auto", zero, dist.get_world_size()) == origin
        assert checkpoint.integrity_error(origin.states) == ""
        assert (made != (origin.states / checkpoint.FILES).stat().st_mtime_ns) == harmed


def losses(config, settings, zero, run, origin, end, device) -> list[float]:
    """Make the steps up to `end`, save, and return the loss of each."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(config.run.seed)
    stage = make_stage(config)
    engines = open_engines(config, settings, stage, world_size, universal=origin.universal)
    loader = open_loader(
        config, run, TrainingMetrics("test", config.stage, rank), rank, world_size, device
    )
    progress = Progress(0, 0, world_size, zero, loader.start)
    if origin.checkpoint is not None:
        progress = replace(checkpoint.load_progress(origin.checkpoint), world_size=world_size)
        origin.load(engines)
    found = []
    epochs = 1 + TOTAL // loader.steps_per_epoch
    with closing(loader.stream(progress.data, epochs)) as stream:
        for step, batch in zip(range(progress.step, end), stream, strict=False):
            context = StepContext(step, config.run.seed, rank, world_size, 1, device, 1.0)
            share = stage.step(engines, batch, context)["loss"]
            dist.all_reduce(share)
            found.append(float(share))
            progress = replace(progress, step=step + 1, data=batch.state)
    save(run, engines, progress, config)
    return found


def save(run, engines, progress, config) -> None:
    """Write and publish a checkpoint."""
    records = {checkpoint.CONFIG: config.to_yaml()}
    checkpoint.write(run.checkpoints, engines, progress, records)
    if dist.get_rank() == 0:
        checkpoint.publish_step(run.checkpoints, progress.step)
    dist.barrier()


class Small(nn.Module):
    """So few values that do not decay that ZeRO leaves some ranks without any of them."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Linear(5, 3, bias=False)
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("one", torch.ones(1), persistent=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.calls += self.one
        return torch.tanh(self.matrix(rows)) * self.scale


def small_losses(config, settings, zero, run, origin, end) -> list[float]:
    """As `losses`, for a module of 16 values."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    complete = deepspeed_settings(
        settings, global_batch=12, world_size=world_size, precision="fp32", gradient_clipping=1.0
    )
    engine = Engine("small", Small(), config.optimizer, complete, universal=origin.universal)
    first = 0
    if origin.checkpoint is not None:
        first = checkpoint.step_of(origin.checkpoint)
        origin.load({"small": engine})
    rows = slice(rank * 12 // world_size, (rank + 1) * 12 // world_size)
    found = []
    for step in range(first, end):
        data = torch.randn(12, 5, generator=torch.Generator().manual_seed(step))[rows]
        share = (engine.forward(data) - 1).square().sum() / 12
        engine.backward(share)
        engine.step(1.0)
        share = share.detach().clone()
        dist.all_reduce(share)
        found.append(float(share))
    calls = float(engine.module.calls)
    assert calls == end, f"{calls} calls are counted after {end} steps: buffers are lost"
    data = checkpoint.DataState("", 0, 0, 0)
    progress = Progress(end, 0, world_size, zero, data)
    save(run, {"small": engine}, progress, config)
    return found


def main() -> None:
    """Make the steps of all runs."""
    yamls, files, out, end = (a for a in sys.argv[1:] if not a.startswith("--local_rank"))
    device = init_distributed(120.0)
    torch.set_num_threads(1)
    for yaml in sorted(Path(yamls).glob("*.yaml")):
        config = configuration.load(yaml)
        for zero in ZERO_STAGES:
            settings = settings_of(Path(files), zero)
            for name in (yaml.stem, "small") if yaml.stem == "retrieval" else (yaml.stem,):
                run = RunFolder(Path(out) / f"{name}-zero{zero}")
                run.create()
                make = small_losses if name == "small" else losses
                more = () if name == "small" else (device,)
                if not checkpoint.published(run.checkpoints):
                    whole = RunFolder(Path(out) / "whole" / run.root.name)
                    whole.create()
                    curve = make(config, settings, zero, whole, ResumePoint(), TOTAL, *more)
                    record(whole.root / "losses.json", curve)
                origin = origin_of(run, zero)
                curve = make(config, settings, zero, run, origin, int(end), *more)
                record(run.root / f"losses-{end}.json", curve)
    dist.barrier()
    dist.destroy_process_group()


def record(file: Path, curve: list[float]) -> None:
    """Write a curve, on rank 0."""
    if dist.get_rank() == 0:
        file.write_text(json.dumps(curve))
    dist.barrier()


if __name__ == "__main__":
    main()
