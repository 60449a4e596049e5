"""Prometheus' file-based service discovery of a run (pure)."""

from typing import TypedDict

from launcher.hostfile import Hosts


class Target(TypedDict):
    """One entry of `file_sd_configs`."""

    targets: list[str]
    labels: dict[str, str]


def targets(hosts: Hosts, base_port: int, run: str) -> list[Target]:
    """Return an entry for every rank of every host.

    Args:
        hosts: their slots.
        base_port: of the first rank of a host; each further one has the next.
        run: the run's name.
    """
    return [
        {"targets": [f"{host}:{base_port + local_rank}"], "labels": {"run": run}}
        for host, slots in hosts.items()
        for local_rank in range(len(slots))
    ]
