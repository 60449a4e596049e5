"""The interface of raw data: rows that any worker can turn into samples."""

import hashlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from data_shards.format.sample import JSON, Kind, RejectedSample, Sample


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """A split before it is built.

    Args:
        kind: `pairs`, `aerial` (a gallery) or `ground` (queries).
        rows: source rows, before any is rejected.
        crops: whether its samples have `crops`: such images are encoded again in every build.
    """

    kind: Kind
    rows: int
    crops: bool = False


class Source(Protocol):
    """Raw data on disk, addressed by row, so that any worker can make any shard.

    A source must pickle: each worker process gets a copy.
    """

    @property
    def name(self) -> str:
        """The data set's name, for the manifest."""
        ...

    @property
    def splits(self) -> Mapping[str, SplitPlan]:
        """The splits by name; a name has letters, digits and underscores only."""
        ...

    def sample(self, split: str, row: int) -> Sample:
        """The sample of a row, the same at every call.

        Raises:
            RejectedSample: the row can't be used.
        """
        ...

    def options(self) -> dict[str, JSON]:
        """Return the options that decide the samples: equal options, equal samples."""
        ...


def read_inside(root: Path, relative: str) -> bytes:
    r"""The bytes of a file that a list names relative to `root`, its folders before `/` or `\`.

    What a rejection says is part of the shards: it names no folder above the data's.

    Raises:
        RejectedSample: `outside_root`, `missing_file` or `unreadable_file`.
    """
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts or "\0" in relative:
        raise RejectedSample("outside_root", f"{relative!r} leads out of the data's folder.")
    try:
        if not stat.S_ISREG((root / path).stat().st_mode):  # a pipe would be waited for
            raise RejectedSample("unreadable_file", f"{path} is not a file.")
        return (root / path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if "\\" in relative:
            return read_inside(root, relative.replace("\\", "/"))
        raise RejectedSample("missing_file", f"{path} does not exist.") from None
    except OSError as error:
        raise RejectedSample(
            "unreadable_file", f"{path} can't be read: {error.strerror}."
        ) from None


def file_hash(path: str | Path | None) -> str | None:
    """Return the SHA-256 of a list that chooses samples, hexadecimal; None without a list."""
    if path is None or not Path(path).exists():
        return None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
