"""Prometheus' file-based service discovery of a run (pure)."""

from collections.abc import Mapping
from typing import TypedDict

from launcher.hosts.hostfile import Hosts


class Target(TypedDict):
    """One entry of `file_sd_configs`."""

    targets: list[str]
    labels: dict[str, str]


def targets(hosts: Hosts, base_port: int, labels: Mapping[str, str]) -> list[Target]:
    """Return an entry for every rank of every host.

    Args:
        hosts: their slots.
        base_port: of the first rank of a host; each further one has the next.
        labels: of every entry, in addition to `rank` and `host`.
    """
    places = [(host, local) for host, slots in hosts.items() for local in range(len(slots))]
    return [
        {
            "targets": [f"{host}:{base_port + local_rank}"],
            "labels": {**labels, "rank": str(rank), "host": host},
        }
        for rank, (host, local_rank) in enumerate(places)
    ]
