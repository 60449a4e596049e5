"""A trained stage, from a run or a checkpoint: weights only, no DeepSpeed state."""

from pathlib import Path

import torch

from data_shards.errors import InputError
from smdt import config as configuration
from smdt.config import Config
from smdt.stages import make_stage
from smdt.stages.alignment import AlignmentStage
from smdt.stages.weights import find_weights, load_weights
from smdt.training import checkpoint
from smdt.training.stage import Evaluation, EvaluationData, Stage, StepContext


def load_stage(trained: Path) -> tuple[Config, Stage]:
    """Return the configuration and the stage of a checkpoint or run, weights loaded, fp32.

    Raises:
        InputError: no checkpoint, or one whose weights do not fit its configuration.
    """
    folder = find_weights(trained)
    config = configuration.load(folder / checkpoint.CONFIG)
    stage = make_stage(config)
    load_weights(stage, folder)
    return config, stage


def evaluate_trained(
    trained: Path, shards: str, split: str, max_missing: int, panogan_compat: bool = False
) -> Evaluation:
    """Evaluate a checkpoint or run on a split, in this process alone.

    Raises:
        InputError: no checkpoint; or `panogan_compat` for a stage that makes no images.
    """
    config, stage = load_stage(trained)
    if panogan_compat and stage.name != AlignmentStage.name:
        raise InputError(
            f"--panogan-compat is about generated images, and {trained} is of stage {stage.name!r}"
        )
    return evaluate_stage(config, stage, shards, split, max_missing, panogan_compat)


def evaluate_stage(
    config: Config,
    stage: Stage,
    shards: str,
    split: str,
    max_missing: int = 0,
    panogan_compat: bool = False,
) -> Evaluation:
    """Evaluate a stage as it is on a split, in this process alone, on a GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for module in stage.modules().values():
        module.to(device)
    data = EvaluationData(
        shards, split, config.evaluation.batch, max_missing, config.data.cache, panogan_compat
    )
    context = StepContext(0, config.run.seed, 0, 1, 1, device)
    return stage.evaluate(context, data)
