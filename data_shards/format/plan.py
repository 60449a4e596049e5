"""The plan of a build, written before its shards, so that a resumed build cannot mix two plans."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_shards.base.atomic import write_atomic
from data_shards.base.errors import InputError, ShardError
from data_shards.base.store import Location, make_folder, read_bytes, sizes
from data_shards.format import layout
from data_shards.format.images import Chroma, Encoding, Filter
from data_shards.format.sample import JSON, Kind

LISTED_RUNS = 10
SPLIT_NAME = re.compile(r"[A-Za-z0-9_]+")


class BuildOptions(BaseModel):
    """Build options that decide the bytes of the shards, in addition to the source."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples_per_shard: int = Field(default=1000, ge=1)
    """Source rows of a shard."""
    ground_size: tuple[int, int] | None = None
    """Height and width to re-encode panoramas and class maps to; None keeps the original bytes."""
    aerial_size: int | None = Field(default=None, ge=1)
    """Side to re-encode aerial tiles to; None keeps the original bytes."""
    quality: int = Field(default=90, ge=1, le=100)
    """JPEG quality of re-encoded images."""
    filter: Filter = "lanczos"
    """Filter that resizes re-encoded images; class maps take the nearest pixel."""
    chroma: Chroma = "4:2:0"
    """Resolution of the colour in re-encoded images: halved or full."""
    seed: int | None = None
    """Deals the rows to the shards at random, for training that reads shard by shard; None keeps
    the source's order."""

    @property
    def encoding(self) -> Encoding:
        """JPEG options of the images that change."""
        return Encoding(self.filter, self.quality, self.chroma)


@dataclass(frozen=True, slots=True)
class ShardTask:
    """A shard to write: source rows of a split, in order."""

    split: str
    shard: int
    rows: tuple[int, ...]


class PlannedSplit(BaseModel):
    """A split before it is built."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    rows: int


class BuildPlan(BaseModel):
    """All that decides the bytes of a data set; `build.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    source: dict[str, JSON]
    options: BuildOptions
    encoder: str | None
    splits: dict[str, PlannedSplit]
    made: dict[str, dict[str, JSON]] = {}
    """By part, the model that made it from the other parts."""
    made_from: str | None = None
    """SHA-256 of the manifest whose samples these are, hexadecimal; None where they are built."""

    @classmethod
    def load(cls, root: Location) -> "BuildPlan":
        """Return the plan of the build in a folder.

        Raises:
            InputError: the folder holds no build, or one that a newer version started.
            ShardError: the plan is damaged.
        """
        path = root / layout.PLAN
        try:
            return cls.model_validate_json(read_bytes(path))
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{root} holds no build: {layout.PLAN} is missing.") from None
        except OSError as error:
            raise InputError(f"{path} can't be read: {error.strerror}.") from None
        except ValidationError as error:
            problems = error.errors()
            if all(problem["type"] == "extra_forbidden" for problem in problems):
                key = ".".join(map(str, problems[0]["loc"]))
                raise InputError(
                    f"{path} has the key {key}, which this version does not know: update smdt, or "
                    "name another --out."
                ) from None
            raise ShardError(f"{path} is damaged; delete {root} and build it again.") from None

    def claim(self, root: Location) -> None:
        """Start or resume this build in `root`, making the folders.

        Raises:
            InputError: the folder can't be made, belongs to another build, or has shards and does
                not say what they are of.
        """
        try:
            for name in self.splits:
                make_folder(root / name)
            # Shards are listed first: another task may write the plan and its first shard now.
            shards = [
                f"{split}/{file}"
                for split in self.splits
                for file in sizes(root / split)
                if layout.is_of_shard(split, file)
            ]
            there = sizes(root)
            if layout.PLAN not in there:
                shards += [layout.MANIFEST] if layout.MANIFEST in there else []
                if shards:
                    raise InputError(
                        f"{root} has {shards[0]} and no {layout.PLAN} that says what it is of: "
                        "name another --out, or delete the folder."
                    )
                write_atomic(root / layout.PLAN, self.model_dump_json(indent=1).encode() + b"\n")
        except OSError as error:
            raise InputError(f"{root} can't be written: {error.strerror}.") from None
        begun = BuildPlan.load(root)
        if begun.made_from is not None and begun.made_from != self.made_from:
            raise InputError(
                f"{root} was made from another data set, or from an older build of this one: "
                "name another --out."
            )
        if begun != self.model_copy(update={"made_from": begun.made_from}):
            raise InputError(
                f"{root} was started with {_difference(begun, self)}: "
                "use the same options, or another --out."
            )

    def tasks(self, split: str) -> list[ShardTask]:
        """The shards of a split."""
        rows = np.arange(self.splits[split].rows)
        if self.options.seed is not None:
            rows = np.random.default_rng(self.options.seed).permutation(rows)
        size = self.options.samples_per_shard
        return [
            ShardTask(split, shard, tuple(rows[start : start + size].tolist()))
            for shard, start in enumerate(range(0, len(rows), size))
        ]


def _difference(begun: BuildPlan, now: BuildPlan) -> str:
    """The first thing that differs, as `samples_per_shard 100, not 50`."""
    ours, theirs = _flatten(now.model_dump(mode="json")), _flatten(begun.model_dump(mode="json"))
    for field in [*theirs, *ours]:
        if ours.get(field) != theirs.get(field):
            return f"{field} {theirs.get(field)}, not {ours.get(field)}"
    raise AssertionError("equal plans")


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


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
