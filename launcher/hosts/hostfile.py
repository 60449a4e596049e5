"""DeepSpeed's hostfiles: which machines there are, how many ranks each takes, which are used.

A line is `NAME slots=N`, a comment starts with `#`. A filter is `NAME[:SLOT,...]`, more joined
by `@`.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_shards.base.errors import InputError
from data_shards.base.names import is_host
from data_shards.base.text import BYTE_ORDER_MARKS, lines_of, read_bytes, to_utf8

Hosts = Mapping[str, Sequence[int]]
"""The slots in use of each host, both in order: ranks are numbered through them."""

_LINE = re.compile(r"(\S+)\s+slots=([1-9]\d*)\s*(#.*)?")


def read_hosts(path: Path, include: str = "", exclude: str = "") -> dict[str, tuple[int, ...]]:
    """Read a hostfile and apply DeepSpeed's `--include` or `--exclude`.

    Raises:
        InputError: it cannot be read, a line is wrong, or the filter names what is not there.
    """
    data = read_bytes(path, "is --hostfile right?")
    if data.startswith(BYTE_ORDER_MARKS):
        raise InputError(
            f"hostfile {path}: it begins with a byte order mark, which DeepSpeed reads as a "
            "part of the first name; save it as UTF-8 without one"
        )
    text = to_utf8(path, data).decode()
    try:
        return apply_filter(parse(text), include, exclude)
    except ValueError as error:
        raise InputError(f"hostfile {path}: {error}") from None


def parse(text: str) -> dict[str, tuple[int, ...]]:
    """Return the slots of each host.

    Raises:
        ValueError: a line is wrong; the sentence has its number.
    """
    hosts: dict[str, tuple[int, ...]] = {}
    for number, line in lines_of(text):
        if line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"line {number} is {line!r}; write NAME slots=N, as node-0 slots=8")
        name = match[1]
        if not is_host(name):  # it means more to ssh, to pdsh's lists or to DeepSpeed's filters
            raise ValueError(
                f"line {number}: {name!r} is not a host name; put users, ports and addresses into "
                "~/.ssh/config and write the name here"
            )
        if name.lower() in map(str.lower, hosts):  # names of hosts have no case
            raise ValueError(f"line {number}: {name} is listed twice; add its slots up")
        hosts[name] = tuple(range(int(match[2])))
    if not hosts:
        raise ValueError("it names no host; write a line NAME slots=N for each")
    return hosts


def apply_filter(
    hosts: Mapping[str, tuple[int, ...]], include: str = "", exclude: str = ""
) -> dict[str, tuple[int, ...]]:
    """Return what DeepSpeed's `--include` or `--exclude` leaves, in the hostfile's order.

    Raises:
        ValueError: both are given, one names what is not there, or nothing is left.
    """
    if include and exclude:
        raise ValueError("--include and --exclude exclude each other; give one")
    if include:
        chosen = _parse_filter(include, hosts)
        return {name: chosen[name] for name in hosts if name in chosen}
    if not exclude:
        return dict(hosts)
    gone = _parse_filter(exclude, hosts)
    rest = {
        name: tuple(slot for slot in slots if slot not in gone.get(name, ()))
        for name, slots in hosts.items()
    }
    left = {name: slots for name, slots in rest.items() if slots}
    if not left:
        raise ValueError(f"--exclude {exclude} leaves no slot")
    return left


def _parse_filter(text: str, hosts: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the slots that a filter names; a name without slots means all of them."""
    chosen: dict[str, set[int]] = {}
    for part in text.split("@"):
        name, colon, slots = part.partition(":")
        if name not in hosts:
            raise ValueError(f"the filter {text!r} names {name!r}, which is not in the file")
        if colon and re.fullmatch(r"\d+(,\d+)*", slots) is None:
            raise ValueError(f"the filter {text!r} has slots {slots!r}; write {name}:0,1")
        wanted = {int(slot) for slot in slots.split(",")} if colon else set(hosts[name])
        missing = sorted(wanted - set(hosts[name]))
        if missing:
            raise ValueError(
                f"the filter {text!r} names slot {missing[0]} of {name}, which has "
                f"{len(hosts[name])}, counted from 0"
            )
        chosen.setdefault(name, set()).update(wanted)
    return {name: tuple(sorted(slots)) for name, slots in chosen.items()}


def include_filter(hosts: Hosts) -> str:
    """Return the `--include` that makes DeepSpeed use exactly these slots."""
    return "@".join(f"{name}:{','.join(map(str, slots))}" for name, slots in hosts.items())


def count(hosts: Hosts) -> int:
    """Return the number of ranks."""
    return sum(len(slots) for slots in hosts.values())


def most_slots(hosts: Hosts) -> int:
    """Return the number of ranks of the host that has most."""
    return max((len(slots) for slots in hosts.values()), default=0)


def fitting(hosts: Hosts, global_batch: int, chunks: int) -> dict[str, tuple[int, ...]]:
    """Return the largest set of ranks that divides the global batch, on as few hosts as can be.

    Args:
        hosts: what there is.
        global_batch: samples of a step.
        chunks: parts of a rank's share.

    Returns:
        The first slots in order; nothing if not even one rank divides it.
    """
    ranks = next((n for n in range(count(hosts), 0, -1) if global_batch % (n * chunks) == 0), 0)
    chosen: dict[str, tuple[int, ...]] = {}
    for name, slots in hosts.items():
        taken = tuple(slots[:ranks])
        ranks -= len(taken)
        if taken:
            chosen[name] = taken
    return chosen
