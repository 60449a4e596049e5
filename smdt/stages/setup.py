"""Parts of a run, made from its configuration: loader, engines, checks of the data."""

from collections.abc import Mapping
from typing import Any

import torch

from smdt.data.loader import TrainLoader
from smdt.data.split import Split
from smdt.stages.base_config import Config
from smdt.stages.registry import training_views
from smdt.telemetry.metrics import TrainingMetrics
from smdt.training.checkpoints.run_folder import RunFolder
from smdt.training.deepspeed.engine import Engine
from smdt.training.deepspeed.settings import deepspeed_settings
from smdt.training.loop.stage import Stage, StepContext
from smdt.training.loop.utilization import ideal_step_seconds


def ideal_seconds_of(config: Config, stage: Stage, context: StepContext) -> float | None:
    """Return how long a step would take at the device's peak; None where that is unknown."""
    samples = config.batch.global_batch / context.world_size
    return ideal_step_seconds(
        lambda: samples * stage.flops_per_sample(),
        context.device,
        config.precision,
        config.telemetry.device_tflops,
    )


def open_engines(
    config: Config,
    user_settings: Mapping[str, Any],
    stage: Stage,
    world_size: int,
    *,
    universal: bool = False,
) -> dict[str, Engine]:
    """Put the stage's modules under DeepSpeed; every rank calls it.

    Args:
        config: the run.
        user_settings: DeepSpeed's own configuration.
        stage: whose modules they are.
        world_size: ranks of the run.
        universal: whether they will load states in the form for any number of ranks.

    Raises:
        InputError: the DeepSpeed file contradicts the YAML.
    """
    settings = deepspeed_settings(
        user_settings,
        global_batch=config.batch.global_batch,
        world_size=world_size,
        precision=config.precision,
        gradient_clipping=config.optimizer.gradient_clipping,
    )
    return {
        name: Engine(name, module, config.optimizer, settings, universal=universal)
        for name, module in stage.modules().items()
    }


def require_data(stage: Stage, config: Config, split: Split) -> None:
    """Check that a stage can learn from a split, and that its evaluations will find their data.

    Raises:
        UserError: it can't, or they won't.
    """
    stage.require(split)
    stage.require_shards(config.evaluation_data)


def open_loader(
    config: Config,
    folder: RunFolder,
    metrics: TrainingMetrics,
    rank: int,
    world_size: int,
    device: torch.device,
) -> TrainLoader:
    """Return a rank's loader; it reads nothing before the first batch is requested.

    Raises:
        UserError: the shards, the split or the global batch do not fit.
    """
    return TrainLoader(
        Split.open(config.data.shards, config.data.split, config.data.cache),
        config.data,
        views=training_views(config),
        global_batch=config.batch.global_batch,
        seed=config.run.seed,
        rank=rank,
        world_size=world_size,
        device=device,
        quarantine=folder.quarantine,
        metrics=metrics,
    )
