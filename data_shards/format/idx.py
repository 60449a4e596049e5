"""The text index of DALI's `wds2idx` (v1.2), so that stock readers start without a scan."""

from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

BLOCK = 512
"""Tar's unit: a member's header is one block, its data is padded to whole blocks."""


class Member(NamedTuple):
    """A file in a tar.

    Args:
        key: the sample's name: up to the first dot.
        part: the rest, as `ground.jpg`.
        offset: of the data, bytes from the tar's start.
        size: of the data, bytes.
    """

    key: str
    part: str
    offset: int
    size: int


def place_members(start: int, key: str, sizes: dict[str, int]) -> tuple[list[Member], int]:
    """Return the offsets of a sample's parts when it is appended to a tar.

    Args:
        start: the tar's length so far, whole blocks.
        key: the sample's.
        sizes: bytes of each part, in the order of writing.

    Returns:
        The members, and the tar's length after them.
    """
    members = []
    for part, size in sizes.items():
        members.append(Member(key, part, start + BLOCK, size))
        start += BLOCK + -(-size // BLOCK) * BLOCK
    return members, start


def idx_text(members: Iterable[Member]) -> str:
    """The whole `.idx` file: a count, then one line a sample: part, offset, size, name, ..."""
    lines = [
        " ".join(f"{m.part} {m.offset} {m.size} {m.key}.{m.part}" for m in sample)
        for _, sample in groupby(members, key=lambda member: member.key)
    ]
    return "\n".join([f"v1.2 {len(lines)}", *lines, ""])
