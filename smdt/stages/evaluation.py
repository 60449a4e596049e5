"""Evaluation of a stage on a split: this rank's samples, and samples that could not be read."""

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist

from data_shards.base.errors import DataError
from smdt.data.distinct_places import Ids
from smdt.data.evaluation_loader import EvaluationLoader
from smdt.data.split import Split
from smdt.stages.base_config import Config
from smdt.training.loop.stage import Evaluation, EvaluationData, Stage, StepContext


def open_evaluation_split(
    views: Sequence[str], context: StepContext, data: EvaluationData
) -> tuple[Split, EvaluationLoader]:
    """Return the split that an evaluation names, and the loader of this rank's part of it.

    Raises:
        DataInputError: there is no such split, or it lacks a view.
    """
    split = Split.open(data.shards, data.split, data.cache)
    return split, make_rank_loader(split, views, context, data.batch, data.max_missing)


def make_rank_loader(
    split: Split,
    views: Sequence[str],
    context: StepContext,
    batch: int,
    max_missing: int,
    sample_ids: Ids | None = None,
) -> EvaluationLoader:
    """Return the loader of a rank's part of a split, or of some samples of it."""
    return EvaluationLoader(
        split,
        views=views,
        batch=batch,
        rank=context.rank,
        world_size=context.world_size,
        device=context.device,
        max_missing=max_missing,
        sample_ids=sample_ids,
    )


def missing_samples(split: Split, read: int, max_missing: int) -> int:
    """Return how many samples of a split are missing where all ranks together have `read` some.

    Raises:
        DataError: more than `max_missing`; each rank's loader knows only its own.
    """
    missing = len(split) - read
    if missing > max_missing:
        raise DataError(
            f"{missing} samples of split {split.name!r} can't be read, more than "
            f"max_missing={max_missing}; `smdt shards verify {split.root}` says which and why."
        )
    return missing


def evaluate_stage(
    config: Config,
    stage: Stage,
    shards: str,
    split: str,
    max_missing: int = 0,
    panogan_compat: bool = False,
) -> Evaluation:
    """Evaluate the current weights of a stage on a split, on GPUs if there are any.

    All ranks of the process group call it, or, where there is none, this process alone.
    """
    together = dist.is_initialized()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    for module in stage.modules().values():
        module.to(device)
    data = EvaluationData(
        shards, split, config.evaluation.batch, max_missing, config.data.cache, panogan_compat
    )
    context = StepContext(0, config.run.seed, rank, world_size, 1, device)
    return stage.evaluate(context, data)
