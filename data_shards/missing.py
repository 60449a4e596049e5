"""Which shards of a build are not finished yet, on whatever host they are written."""

from data_shards import layout
from data_shards.errors import ShardError
from data_shards.plan import BuildPlan
from data_shards.store import Location, sizes

LISTED_RUNS = 10


def check_complete(root: Location, plan: BuildPlan) -> None:
    """Raise a `ShardError` that names the shards of every split that are missing."""
    missing = missing_shards(root, plan)
    if not missing:
        return
    counts = [
        f"{len(numbers)} of {len(plan.tasks(split))} shards of {split} ({ranges(numbers)})"
        for split, numbers in missing.items()
    ]
    raise ShardError(
        f"Not built yet: {' and '.join(counts)}. "
        "Start the same build, or its tasks that have not finished, again."
    )


def missing_shards(root: Location, plan: BuildPlan) -> dict[str, list[int]]:
    """The shards of each split that have no index part yet; splits that are whole are left out.

    Folders are listed: asking name by name would let a network file system answer from what it
    remembers, also about shards that another host has finished since.
    """
    missing = {}
    for split in plan.splits:
        there = sizes(root / split)
        numbers = [
            task.shard
            for task in plan.tasks(split)
            if layout.part_path(root, split, task.shard).name not in there
        ]
        if numbers:
            missing[split] = numbers
    return missing


def ranges(numbers: list[int]) -> str:
    """Ascending numbers in short, as `0-3, 7, 9`; the first runs only, if there are many."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    named = ["-".join(map(str, run)) for run in runs[:LISTED_RUNS]]
    return ", ".join(named if len(runs) <= LISTED_RUNS else [*named, "..."])
