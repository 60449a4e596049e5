"""What a stage is evaluated on: this rank's samples of a split, and what no rank could read."""

from collections.abc import Sequence

from smdt.data.distinct_places import Ids
from smdt.data.evaluation_loader import EvaluationLoader
from smdt.data.split import DataError, Split
from smdt.training.stage import EvaluationData, StepContext


def open_held_out(
    views: Sequence[str], context: StepContext, data: EvaluationData
) -> tuple[Split, EvaluationLoader]:
    """Return the split that an evaluation names, and the loader of this rank's part of it.

    Raises:
        DataInputError: there is no such split, or it lacks a view.
    """
    split = Split.open(data.shards, data.split, data.cache)
    return split, loader_of_rank(split, views, context, data.batch, data.max_missing)


def loader_of_rank(
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
