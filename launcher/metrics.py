"""Every metric that the launcher exports, declared once.

Names, units and labels are a contract with the dashboards and alerts: change them together.
The labels are those of training: `stage` is `launcher`, `rank` is 0.
"""

import socket
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

from data_shards.base.names import label_value

LABELS = ("run", "stage", "rank", "host")
STAGE = "launcher"
HOST_STATES = ("used", "idle", "left_out")
"""Ranks run there; it is well but the batch needs it not; it failed the preflight."""


class LauncherMetrics:
    """The metrics of one launcher, in a separate registry."""

    def __init__(self, run: str, host: str | None = None) -> None:
        self.registry = CollectorRegistry()
        self._values = (label_value(run), STAGE, "0", host or socket.gethostname())
        self.labels = dict(zip(LABELS, self._values, strict=True))
        self.restarts = Counter(
            "smdt_launcher_restarts",
            "Attempts after the first",
            LABELS,
            registry=self.registry,
        ).labels(*self._values)
        self._hosts = Gauge(
            "smdt_launcher_hosts",
            "Hosts of the hostfile, by what they are to the run",
            (*LABELS, "state"),
            registry=self.registry,
        )

    def set_hosts(self, counts: Mapping[str, int]) -> None:
        """Set how many hosts are in each of `HOST_STATES`."""
        for state in HOST_STATES:
            self._hosts.labels(*self._values, state).set(counts.get(state, 0))
