"""What a folder is being built from: written first, so that a resumed build can't mix two."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_shards import layout
from data_shards.atomic import write_atomic
from data_shards.errors import InputError, ShardError
from data_shards.images import Chroma, Encoding, Filter, encoder_name
from data_shards.sources.source import JSON, Kind, Source
from data_shards.store import Location, make_folder, read_bytes, sizes

SPLIT_NAME = re.compile(r"[A-Za-z0-9_]+")


class BuildOptions(BaseModel):
    """What decides the bytes of the shards, besides the source."""

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
    """What resizes re-encoded images; class maps take the nearest pixel."""
    chroma: Chroma = "4:2:0"
    """Resolution of the colour in re-encoded images: halved or full."""
    seed: int | None = None
    """Deals the rows to the shards at random, for training that reads shard by shard; None keeps
    the source's order."""

    @property
    def encoding(self) -> Encoding:
        """Of the images that change."""
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
    def of(cls, source: Source, options: BuildOptions) -> "BuildPlan":
        """The plan of a build.

        Raises:
            InputError: a split has no rows, or a name that can't be part of a key.
        """
        for name, split in source.splits.items():
            if SPLIT_NAME.fullmatch(name) is None:
                raise InputError(
                    f"The split name {name!r} may have only letters, digits and underscores."
                )
            if split.rows == 0:
                raise InputError(f"The split {name} of {source.name} has no rows.")
        resizes = options.ground_size is not None or options.aerial_size is not None
        encodes = resizes or any(split.crops for split in source.splits.values())
        return cls(
            name=source.name,
            source=source.options(),
            options=options,
            encoder=encoder_name(options.encoding) if encodes else None,
            splits={
                name: PlannedSplit(kind=split.kind, rows=split.rows)
                for name, split in source.splits.items()
            },
        )

    @classmethod
    def load(cls, root: Location) -> "BuildPlan":
        """The plan that a folder was begun with.

        Raises:
            InputError: no build was begun in the folder.
            ShardError: the plan is damaged.
        """
        path = root / layout.PLAN
        try:
            return cls.model_validate_json(read_bytes(path))
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"No build was begun in {root}: there is no {layout.PLAN}.") from None
        except OSError as error:
            raise InputError(f"{path} can't be read: {error.strerror}.") from None
        except ValidationError:
            raise ShardError(f"{path} is damaged; delete {root} and build it again.") from None

    def claim(self, root: Location) -> None:
        """Begin or go on with this build in `root`, making the folders.

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
                f"{root} was begun with samples of another data set, or of this one before it was "
                "built anew: name another --out."
            )
        if begun != self.model_copy(update={"made_from": begun.made_from}):
            raise InputError(
                f"{root} was begun with {_difference(begun, self)}: "
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
