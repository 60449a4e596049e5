"""Lists of samples to leave out of a build."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from data_shards.base.errors import InputError
from data_shards.base.text import lines_of, read_bytes, to_utf8

ENTRY = re.compile(r"""\s#.*|"([^"]*)"|'([^']*)'|([^\s;"']+)""")
"""A comment, a quoted text, or a run of characters without separators."""

NAMED = 3
"""Entries that an error names."""


class Exclusions(NamedTuple):
    """The samples that a list excludes.

    Attributes:
        names: as the data set's `canonical` spells them.
        sha256: of the file, hexadecimal; None where there is none.
    """

    names: frozenset[str]
    sha256: str | None


def read_exclusions(
    path: str | Path | None, known: Iterable[str], canonical: Callable[[str], str]
) -> Exclusions:
    """Read a list of ids or file names.

    Entries are separated by line breaks, commas, semicolons, tabs or spaces, with or
    without quotes and folders (`/` or `\\`). `#` begins a comment. A comma may be part of a name.

    Args:
        path: of the list; None excludes nothing.
        known: names of the data set that may be excluded, in the canonical spelling.
        canonical: the one spelling of a name without its folder.

    Raises:
        InputError: it can't be read, or an entry matches nothing.
    """
    if path is None:
        return Exclusions(frozenset(), None)
    path = Path(path)
    names = frozenset(known)
    data = read_bytes(path, "--exclude takes an exclusion list.")
    commas = max((name.count(",") for name in names), default=0)
    found: set[str] = set()
    unknown: list[str] = []
    count = 0
    for line in lines_of(to_utf8(path, data).decode()):
        for entry in _entries(f" {line.text}", names, canonical, commas):
            count += 1
            name = _name(entry, canonical)
            if name in names:
                found.add(name)
            else:
                unknown.append(f"{entry!r} (line {line.number})")
    if unknown:
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        raise InputError(
            f"{len(unknown)} of {count} entries of the exclusion list {path} match nothing in the "
            f"data set: {', '.join(unknown[:NAMED])}{more}. Correct or remove them."
        )
    return Exclusions(frozenset(found), hashlib.sha256(data).hexdigest())


def _entries(
    text: str, names: frozenset[str], canonical: Callable[[str], str], commas: int
) -> Iterator[str]:
    for match in ENTRY.finditer(text):
        quoted = match[1] if match[1] is not None else match[2]
        if quoted is not None and _name(quoted, canonical) in names:
            yield quoted
        elif quoted is not None:
            yield from _entries(quoted, names, canonical, commas)
        elif match[3] is not None:
            yield from _split(match[3], names, canonical, commas)


def _split(
    word: str, names: frozenset[str], canonical: Callable[[str], str], commas: int
) -> Iterator[str]:
    """Split at the commas that are part of no name; a word that has no name in it is one entry."""
    fields = [field for field in word.split(",") if field]
    entries: list[str] = []
    start, known = 0, False
    while start < len(fields):
        for stop in range(start + 1, min(start + 2 + commas, len(fields) + 1)):
            entry = ",".join(fields[start:stop])
            if _name(entry, canonical) in names:
                known = True
                break
        else:
            entry, stop = fields[start], start + 1
        entries.append(entry)
        start = stop
    yield from entries if known or not commas else [word] if fields else []


def _name(entry: str, canonical: Callable[[str], str]) -> str:
    """The canonical name; of an entry whose folder has a separator in it none: that is several."""
    folder, _, name = entry.replace("\\", "/").rpartition("/")
    return "" if re.search("[,;]", folder) else canonical(name)
