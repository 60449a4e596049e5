"""A trained stage, from a run or a checkpoint: weights only, no DeepSpeed state."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from data_shards.errors import InputError
from smdt import config as configuration
from smdt.config import Config
from smdt.stages import make_stage
from smdt.stages.alignment import AlignmentStage
from smdt.training import checkpoint
from smdt.training.run_folder import RunFolder
from smdt.training.stage import Evaluation, EvaluationData, Stage, StepContext


def find_weights(trained: Path) -> Path:
    """Return the checkpoint folder that `trained` means: itself, or the newest whole one of a run.

    Not the best one of a run: that was chosen on the very split that is evaluated.

    Raises:
        InputError: there is none.
    """
    if not (trained / checkpoint.WEIGHTS).is_file():
        newest = checkpoint.newest_good(RunFolder(trained).checkpoints)
        if newest is None:
            raise InputError(f"{trained}: neither a checkpoint nor a run that has one")
        return newest
    fault = checkpoint.damage(trained)
    if fault:
        raise InputError(f"checkpoint {trained}: {fault}; name another one")
    return trained


def load_stage(trained: Path) -> tuple[Config, Stage]:
    """Return the configuration and the stage of a checkpoint or run, weights loaded, fp32.

    Raises:
        InputError: no checkpoint, or one whose weights do not fit its configuration.
    """
    folder = find_weights(trained)
    config = configuration.load(folder / checkpoint.CONFIG)
    stage = make_stage(config)
    weights = load_file(folder / checkpoint.WEIGHTS)
    for name, module in stage.modules().items():
        prefix = f"{name}."
        own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise InputError(f"checkpoint {folder}: {error}") from error
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
