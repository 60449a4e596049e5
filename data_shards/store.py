"""Where a data set stands: a local folder, or a URL of a store that fsspec opens.

A local path is used as it is. A store is asked again, with growing waits, while it does not answer.
Credentials come from the environment or fsspec's configuration and never stand in a location, so a
location can be printed.
"""

import errno
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeVar
from urllib.parse import urlsplit

from upath import UPath

from data_shards.errors import InputError, ShardError

Location: TypeAlias = Path | UPath

GIVE_UP_SECONDS = 60.0
"""How long a store may stay away: an attempt that fails later than this is the last."""

FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 10.0

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of the local disk during a download, which waiting does not mend."""

Pause: TypeAlias = Callable[[float], object]
"""Waits for some seconds; a true result means that waiting is over for good."""

_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


class StoreError(ShardError):
    """A store stays away, or refuses: one sentence that names the location."""


def location(root: str | Path | UPath) -> Location:
    """The location that a person names: a path, or a URL.

    Raises:
        InputError: the URL holds credentials or a signature, or nothing installed opens it.
    """
    if not isinstance(root, str):
        return root
    if "://" not in root:
        return Path(root)
    parts = urlsplit(root)
    if "::" in root:
        raise InputError("An address that chains protocols by '::' is not supported.")
    if "@" in parts.netloc or parts.query:
        raise InputError(
            f"{parts.scheme}://{parts.hostname or ''}{parts.path}: leave credentials and "
            "signatures out of the address; the store's own environment variables or fsspec's "
            "configuration hold them."
        )
    if parts.scheme == "file":
        return Path(parts.path)
    # botocore's own attempts multiply ours: a refused call took 8 s with them, 0.9 s with one.
    os.environ.setdefault("AWS_MAX_ATTEMPTS", "1")
    try:
        where = UPath(root.rstrip("/"), use_listings_cache=False)
        where.fs  # noqa: B018  (makes the file system, which needs its package)
    except ImportError:
        extra = "smdt[s3]" if parts.scheme in ("s3", "s3a") else f"fsspec[{parts.scheme}]"
        raise InputError(
            f"{root} needs a package that is not installed: pip install '{extra}'."
        ) from None
    except ValueError:
        raise InputError(f"{root}: nothing opens the protocol {parts.scheme!r}.") from None
    return where


def persistently(
    action: Callable[[], _Result], where: Location, pause: Pause = time.sleep
) -> _Result:
    """Repeat what asks a store until it succeeds or the store has been away for too long.

    Raises:
        FileNotFoundError: the store says that the file does not exist.
        StoreError: the store stays away, refuses, or cannot do such a thing; or `pause` ended it.
    """
    end = time.monotonic() + GIVE_UP_SECONDS
    delay_seconds = FIRST_DELAY_SECONDS
    while True:
        try:
            return action()
        except FileNotFoundError:
            raise
        except NotImplementedError:
            raise StoreError(f"{where} can't be written: such a store is only read.") from None
        except Exception as error:  # every store has errors of its own
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                raise
            # Only the kind is told: a store's own words may hold what it was signed with.
            kind = type(error).__name__
            if time.monotonic() > end or pause(delay_seconds):
                raise StoreError(
                    f"{where} is out of reach ({kind}), tried for {GIVE_UP_SECONDS:.0f} s: is the "
                    "store up, are its address and credentials in the environment?"
                ) from None
            if delay_seconds == FIRST_DELAY_SECONDS:
                _log.warning("%s does not answer (%s), trying again", where, kind)
            delay_seconds = min(2 * delay_seconds, LONGEST_DELAY_SECONDS)


def make_folder(folder: Location) -> None:
    """Make a folder and those above it; an object store has none."""
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)


def exists(file: Location) -> bool:
    """Whether a file is there.

    Raises:
        StoreError: the store stays away.
    """
    if isinstance(file, Path):
        return file.exists()
    try:
        size(file)
    except FileNotFoundError:
        return False
    return True


def size(file: UPath) -> int:
    """Bytes of a file in a store.

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: the store stays away.
    """
    return int(persistently(lambda: file.fs.info(file.path)["size"], file))


def sizes(folder: Location) -> dict[str, int]:
    """Bytes of the files in a folder by name; empty if there is no such folder.

    Raises:
        StoreError: the store stays away.
    """
    try:
        if isinstance(folder, Path):
            return {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
        listed = persistently(lambda: folder.fs.ls(folder.path, detail=True), folder)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {each["name"].rsplit("/", 1)[-1]: each["size"] or 0 for each in listed}


def read_bytes(file: Location, offset: int = 0, length: int | None = None) -> bytes:
    """The bytes of a file, or `length` of them from `offset`; fewer only where it ends.

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: the store stays away.
    """
    if not isinstance(file, Path):
        # A range of an empty file is an error; the whole of it is not.
        piece = {} if length is None else {"start": offset, "end": offset + length}
        data: bytes = persistently(lambda: file.fs.cat_file(file.path, **piece), file)
        return data
    with file.open("rb") as opened:
        opened.seek(offset)
        return opened.read(-1 if length is None else length)


def download(file: UPath, to: Path, pause: Pause = time.sleep) -> None:
    """Copy a whole file from a store to a local path.

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: the store stays away.
    """

    def copy() -> None:
        file.fs.get_file(file.path, str(to))
        there, here = file.fs.info(file.path)["size"], to.stat().st_size
        if there is not None and here != there:
            raise ConnectionError(f"{here} of {there} bytes came")

    persistently(copy, file, pause)


@contextmanager
def local_copy(file: Location) -> Iterator[Path]:
    """The file itself where it is local, else a temporary copy of it.

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: the store stays away.
    """
    if isinstance(file, Path):
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="smdt-") as folder:
        copy = Path(folder) / file.name
        download(file, copy)
        yield copy


@contextmanager
def uploaded_file(file: UPath) -> Iterator[BinaryIO]:
    """A local file to write that is put into a store, whole, when the block ends well.

    Raises:
        InputError: there is no such bucket.
        StoreError: the store stays away or takes no files.
    """
    with tempfile.TemporaryDirectory(prefix="smdt-") as folder:
        spool = Path(folder) / file.name
        with spool.open("wb") as opened:
            yield opened
        try:
            persistently(lambda: file.fs.put_file(str(spool), file.path), file)
        except FileNotFoundError:
            raise InputError(f"{file} can't be written: there is no such bucket.") from None
