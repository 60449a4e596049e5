"""The manifest of a finished data set: `manifest.json`."""

import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_shards.base.atomic import write_atomic
from data_shards.base.errors import InputError, ShardError
from data_shards.base.store import Location, exists, location, read_bytes
from data_shards.format import layout
from data_shards.format.classes import CLASS_NAMES
from data_shards.format.duplicates import DuplicateCount
from data_shards.format.pixels import ViewStatistics
from data_shards.format.plan import SPLIT_NAME, BuildOptions
from data_shards.format.sample import JSON, Kind

__all__ = ["Manifest", "ShardEntry", "ShardError", "SplitEntry", "load", "manifest_hash", "save"]

FORMAT_VERSION = 3
"""1: without filter, chroma and duplicates, 2: without `made`, which then have their defaults."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Version(BaseModel):
    """Read before anything else: a newer format may have any other fields."""

    format_version: int = Field(ge=1)


# A manifest may come from anywhere, and these become names of files.
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SplitName = Annotated[str, Field(pattern=f"^{SPLIT_NAME.pattern}$")]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class ShardEntry(_Strict):
    """A shard on disk."""

    shard: Count
    """Its number in the split, as in its file names and the index."""
    samples: Count
    bytes: Count
    """Size of the tar."""
    sha256: Sha256
    """Hash of the tar."""
    index_sha256: Sha256
    """Hash of the index part."""


class SplitEntry(_Strict):
    """A split: what it is, how large, and its shards."""

    kind: Kind
    rows: Count
    """Rows of the source, before rejection."""
    samples: Count
    bytes: Count
    """Size of all tars of the split."""
    rejected: dict[str, Count]
    """Rows that are not in the shards, by reason."""
    views: dict[str, ViewStatistics]
    """Pixel statistics by view: ground, aerial, aligned."""
    duplicates: dict[str, DuplicateCount] | None = None
    """By view; None: its shards are older than the count."""
    table_sha256: Sha256
    """Hash of the merged index."""
    shards: list[ShardEntry]


class Manifest(_Strict):
    """A finished data set. The same build gives the same bytes: no dates, no host names."""

    format_version: int = FORMAT_VERSION
    name: str
    """The data set: `cvusa`, `folder`, `world`."""
    seed: int | None
    """Seed of the build's row order; a generated data set's own seed is in `source`."""
    source: dict[str, JSON]
    """Options of the source that its samples depend on."""
    options: BuildOptions
    encoder: str | None
    """Encoding of re-encoded images; None: they have their original bytes."""
    made: dict[str, dict[str, JSON]] = {}
    """By part, the model that made it from the other parts."""
    classes: dict[int, str] = CLASS_NAMES
    """Meaning of the ids in class maps."""
    splits: Annotated[dict[SplitName, SplitEntry], Field(min_length=1)]


def load(root: str | Location) -> Manifest:
    """The manifest of a finished data set.

    Raises:
        InputError: there is no folder or no manifest, or its format is newer than this code.
        ShardError: the manifest is damaged.
    """
    root = location(root)
    path = root / layout.MANIFEST
    data = _read(root)
    try:
        version = _Version.model_validate_json(data).format_version
        if version > FORMAT_VERSION:
            raise InputError(
                f"{path} has format version {version}, this code reads up to {FORMAT_VERSION}: "
                "update smdt."
            )
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise ShardError(f"{path} is damaged: {first_problem(error)}.") from None


def manifest_hash(root: str | Location) -> str:
    """SHA-256 of the manifest's bytes, hexadecimal: equal hashes, equal data sets.

    Raises:
        InputError: there is no folder or no manifest.
    """
    return hashlib.sha256(_read(location(root))).hexdigest()


def save(root: Location, manifest: Manifest) -> None:
    """Write `manifest.json`: from then on the data set is finished."""
    write_atomic(root / layout.MANIFEST, manifest_bytes(manifest))


def manifest_bytes(manifest: Manifest) -> bytes:
    """The content of `manifest.json` (pure)."""
    return manifest.model_dump_json(indent=1).encode() + b"\n"


def first_problem(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, with its field."""
    problem = error.errors()[0]
    field = ".".join(str(name) for name in problem["loc"])
    return f"{field}: {problem['msg']}" if field else problem["msg"]


def _read(root: Location) -> bytes:
    if isinstance(root, Path) and not root.is_dir():
        raise InputError(f"There is no folder {root}.")
    try:
        return read_bytes(root / layout.MANIFEST)
    except FileNotFoundError:
        unfinished = exists(root / layout.PLAN)
        what_to_do = (
            "its build has not finished: start the same `smdt shards build` again"
            if unfinished
            else "it is not a data set made by `smdt shards`"
        )
        raise InputError(f"{root} has no {layout.MANIFEST}: {what_to_do}.") from None
    except OSError as error:
        raise InputError(f"{root / layout.MANIFEST} can't be read: {error.strerror}.") from None
