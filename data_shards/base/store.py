"""Storage of a data set: a local folder, or a URL of a store that fsspec opens.

A local path is used unchanged. A store is asked again, with growing waits, while it does not
answer. Credentials come from the environment or fsspec's configuration and are never part of a
location, so a location can be printed.
"""

import errno
import logging
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from upath import UPath

from data_shards.base.errors import InputError, StoreError

Location: TypeAlias = Path | UPath

GIVE_UP_SECONDS = 60.0
"""Seconds of retries: an attempt that fails later than this is the last."""

FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 10.0

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of the local disk during a download that a retry does not fix."""

NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""Errors of a name that leads to no file."""

ADDRESS = re.compile(r"(?P<name>[A-Za-z][A-Za-z0-9+.-]+):(?=/)|file:", re.IGNORECASE)
"""How a URL begins."""

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
"""Characters that a parser of URLs drops."""

LOCAL = ("file", "local")
"""Protocols whose URLs are local paths."""

HOSTED = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "http", "https")
"""Protocols whose URLs name a bucket or a host before the path."""

Pause: TypeAlias = Callable[[float], object]
"""Waits for some seconds; a true result means that waiting is over for good."""

_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


def location(root: str | Path | UPath) -> Location:
    """Parse a location: a path, or a URL.

    A path is used unchanged. In a `file:` URL, `%20` is a space; in a store's address every
    character stands for itself, as in the store's own tools.

    Raises:
        InputError: it is empty or no URL, holds credentials or a signature, or nothing installed
            opens it.
        StoreError: the store does not answer.
    """
    if not isinstance(root, str):
        return root
    if not root or "\0" in root:
        raise InputError(f"{root!r} is not an address: name a folder or a URL.")
    if ADDRESS.match(root) is None and not re.match(r"(?![/.]).*://", root):
        return Path(root)
    if "::" in root:
        raise InputError("An address that chains protocols by '::' is not supported.")
    if ADDRESS.match(root) is None or CONTROL.search(root):
        raise InputError(f"{root!r} is not a URL: it begins with no protocol or has a line break.")
    try:
        parts = urlsplit(root)
    except ValueError as error:
        raise InputError(f"{root} is not a URL: {error}.") from None
    if "@" in parts.netloc or (parts.query and parts.scheme not in LOCAL):
        raise InputError(
            f"{parts.scheme}://{parts.hostname or ''}{parts.path}: leave credentials and "
            "signatures out of the address; the store's own environment variables or fsspec's "
            "configuration hold them."
        )
    if parts.scheme in LOCAL:
        return _local_path(root, parts)
    name, path = root.partition(":")[::2]
    if not path.startswith("//") or (parts.scheme in HOSTED and not parts.netloc):
        raise InputError(
            f"{root} is not a URL: write PROTOCOL://NAME/PATH, or ./ before the path of a folder."
        )
    if parts.fragment and parts.scheme in ("http", "https"):
        raise InputError(f"{root} has a '#', which ends the path of a URL: write %23.")
    # botocore's own attempts multiply ours: a refused call took 8 s with them, 0.9 s with one.
    os.environ.setdefault("AWS_MAX_ATTEMPTS", "1")
    try:
        path = re.sub(r"(?<=[^:/])/+$", "", path)
        where = UPath(f"{name.lower()}:{path}", use_listings_cache=False)
        where.fs  # noqa: B018  (makes the file system, which needs its package)
    except ImportError:
        extra = "smdt[s3]" if parts.scheme in ("s3", "s3a") else f"fsspec[{parts.scheme}]"
        raise InputError(
            f"{root} needs a package that is not installed: pip install '{extra}'."
        ) from None
    except ValueError:
        raise InputError(f"{root}: nothing opens the protocol {parts.scheme!r}.") from None
    except Exception as error:  # every store has errors of its own
        raise StoreError(f"{root} is out of reach ({type(error).__name__}).") from None
    if isinstance(where, Path):
        raise InputError(f"{root}: nothing opens the protocol {parts.scheme!r}.")
    return where


def _local_path(root: str, parts: SplitResult) -> Path:
    """The path that a `file:` URL names; `%` and two digits are a byte of it."""
    fix = "write a local folder as its path, or as file:///PATH"
    if parts.netloc not in ("", "localhost"):
        raise InputError(f"{root} names the host {parts.netloc!r}: {fix}.")
    for mark, code in (("?", "%3F"), ("#", "%23")):
        if mark in root:
            raise InputError(f"{root} has a {mark!r}, which ends the path of a URL: write {code}.")
    path = unquote(parts.path, errors="surrogateescape")
    if not path.startswith("/") or "\0" in path:
        raise InputError(f"{root} names no absolute path: {fix}.")
    return Path(path)


def require_local(path: Path, what: str) -> None:
    """Refuse a URL where only a local path can be: as a path it would name a folder `s3:` here.

    Raises:
        InputError: it is a URL; `what` names the option or key.
    """
    if ADDRESS.match(str(path)):
        raise InputError(f"{what} {path} is a URL: it has to be a local path.")


def same_location(one: Location, other: Location) -> bool:
    """Whether two locations are one file or folder, however they are spelled."""
    if isinstance(one, Path) and isinstance(other, Path):
        try:
            return one.resolve() == other.resolve() or one.samefile(other)
        except (OSError, RuntimeError):  # one of them is not there, or is a loop of links
            return False
    if isinstance(one, Path) or isinstance(other, Path):
        return False
    return one.fs == other.fs and one.path.strip("/") == other.path.strip("/")


def retry(action: Callable[[], _Result], where: Location, pause: Pause = time.sleep) -> _Result:
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
            # Only the kind is shown: a store's own message may hold what it was signed with.
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
        InputError: its folder can't be read.
        StoreError: the store stays away.
    """
    if isinstance(file, Path):
        return state_of(file) is not None
    try:
        size(file)
    except FileNotFoundError:
        return False
    return True


def state_of(path: Path) -> os.stat_result | None:
    """Return the stat of a local file; None if it does not exist or is a broken link.

    Raises:
        InputError: the file system does not say.
    """
    try:
        return path.stat()
    except OSError as error:
        if error.errno in NOT_THERE:
            return None
        raise InputError(f"{path} can't be read: {error.strerror}.") from None


def size(file: UPath) -> int:
    """Bytes of a file in a store.

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: the store stays away.
    """
    return int(retry(lambda: file.fs.info(file.path)["size"], file))


def sizes(folder: Location) -> dict[str, int]:
    """Return the sizes of the files in a folder by name; empty if the folder does not exist.

    A file that vanishes meanwhile and a link to nothing are left out.

    Raises:
        InputError: the folder can't be read.
        StoreError: the store stays away.
    """
    if isinstance(folder, Path):
        states = {name: state_of(folder / name) for name in names(folder)}
        files = {name: state for name, state in states.items() if state}
        return {n: state.st_size for n, state in files.items() if stat.S_ISREG(state.st_mode)}
    try:
        listed = retry(lambda: folder.fs.ls(folder.path, detail=True), folder)
    except FileNotFoundError:
        return {}
    stored = [each for each in listed if each["type"] == "file"]
    return {each["name"].rsplit("/", 1)[-1]: each["size"] or 0 for each in stored}


def names(folder: Path) -> list[str]:
    """Return the names in a local folder, sorted; empty if the folder does not exist.

    Raises:
        InputError: the folder can't be read: that is not the same as an empty one.
    """
    try:
        return sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"The folder {folder} can't be read: {error.strerror}.") from None


def read_bytes(file: Location, offset: int = 0, length: int | None = None) -> bytes:
    """The bytes of a file, or `length` of them from `offset`; fewer only where it ends.

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: the store stays away.
    """
    if not isinstance(file, Path):
        # A range of an empty file is an error; the whole of it is not.
        piece = {} if length is None else {"start": offset, "end": offset + length}
        data: bytes = retry(lambda: file.fs.cat_file(file.path, **piece), file)
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

    retry(copy, file, pause)


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
            retry(lambda: file.fs.put_file(str(spool), file.path), file)
        except FileNotFoundError:
            raise InputError(f"{file} can't be written: the bucket does not exist.") from None
