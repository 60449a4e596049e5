"""Shards in, shards out: `smdt segment` and `smdt align` but for the model.

Every shard is a separate task that belongs to one rank; a finished one is not made again. Damaged
samples are not replaced: what cannot be read is left out of its shard, listed and counted.
"""

from dataclasses import dataclass

import torch

from data_shards.base.errors import DataError, DataInputError
from data_shards.base.store import Location, location, same_location
from data_shards.build.executor import AdvanceCallback
from data_shards.build.finalize import finalize
from data_shards.build.rewrite import rewriting_plan
from data_shards.format import layout, manifest
from data_shards.format.index import read_summary
from data_shards.format.manifest import Manifest
from data_shards.format.plan import BuildPlan, ShardTask, check_complete, missing_shards
from smdt.data.pipeline import require_dali
from smdt.data.split import Split
from smdt.inference.annotated_shard import Annotator, MissingSampleLimit, ShardAnnotator, has_views


@dataclass(frozen=True)
class Annotation:
    """Inputs and output of an annotation.

    Attributes:
        shards: folder or URL of the finished data set.
        out: of the new one.
        batch: samples that the model sees at once.
        max_missing: how many unreadable samples may be left out.
    """

    shards: str
    out: str
    batch: int = 16
    max_missing: int = 0


def begin(job: Annotation, annotator: Annotator) -> BuildPlan:
    """Check the job and start or resume it; every rank may call it.

    Raises:
        InputError: `out` is the source or belongs to another job, nothing has what the part is made
            from, or a view has a shape that it can't be made from; or DALI is not installed.
        DataError: tars are missing or truncated.
    """
    require_dali()
    source, out = location(job.shards), location(job.out)
    if same_location(source, out):
        raise DataInputError(f"--out {out} is where the shards come from: name another folder.")
    described = manifest.load(source)
    splits = [Split.open(source, name) for name in described.splits]
    if not any(has_views(split, annotator.views).any() for split in splits):
        views = " and ".join(annotator.views)
        raise DataInputError(f"No sample in {source} has {views}, which {annotator.part} is from.")
    for split in splits:
        split.require_shapes(annotator.views)
        split.require_tars(job.max_missing, "--max-missing")
    plan = rewriting_plan(described, splits[0].manifest_hash, annotator.part, annotator.model)
    plan.claim(out)
    return plan


def annotate(
    job: Annotation,
    annotator: Annotator,
    device: torch.device,
    rank: int,
    world_size: int,
    advance: AdvanceCallback,
) -> None:
    """Make those shards of this rank that are not finished.

    Args:
        job: what to do.
        annotator: what makes the part.
        device: of its model.
        rank: of this process, below `world_size`.
        world_size: processes that share the shards.
        advance: called with the number of samples done since the last call.

    Raises:
        InputError, DataError: as `begin`; or samples are damaged, or storage stays away.
    """
    plan = begin(job, annotator)
    root = location(job.out)
    missing = MissingSampleLimit(job.max_missing)
    for name, shards in missing_shards(root, plan).items():
        own = [task for task in plan.tasks(name)[rank::world_size] if task.shard in shards]
        if not own:
            continue
        split = Split.open(job.shards, name)
        shard = ShardAnnotator(split, annotator, job.batch, device, missing)
        for task in own:
            shard.write(task, root, advance)


def samples_left(job: Annotation, plan: BuildPlan, rank: int, world_size: int) -> int:
    """Return how many source rows are in a rank's unfinished shards."""
    missing = missing_shards(location(job.out), plan)
    own = (task for name in missing for task in plan.tasks(name)[rank::world_size])
    return sum(len(task.rows) for task in own if task.shard in missing[task.split])


def finish(job: Annotation) -> Manifest:
    """Make a data set of the shards, all of which are there.

    Raises:
        ShardError: shards are missing.
        DataError: more samples were left out, by all ranks together, than allowed.
    """
    source, out = location(job.shards), location(job.out)
    plan = BuildPlan.load(out)
    check_complete(out, plan)
    tasks = [task for name in plan.splits for task in plan.tasks(name)]
    lost = sum(_rejected(out, task) - _rejected(source, task) for task in tasks)
    if lost > job.max_missing:
        raise DataError(
            f"{lost} samples of {source} can't be read, more than --max-missing {job.max_missing}: "
            f"`smdt shards verify {source}` names them; repair them, delete {out} and start again."
        )
    return finalize(out)


def _rejected(root: Location, task: ShardTask) -> int:
    return len(read_summary(layout.part_path(root, task.split, task.shard)).rejected)
