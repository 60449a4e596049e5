"""Every metric that a shard job exports, declared once.

Names, units and labels are a contract with the dashboards and alerts: change them together.
The labels are those of training: `run` is the data set's folder, `stage` is `shards`, `rank` the
task of a job array, `host` where it runs.
"""

import socket

from prometheus_client import CollectorRegistry, Counter, Gauge

from data_shards.base.names import label_value
from data_shards.build.progress import BuildCallback, Work
from data_shards.format.index import ShardSummary

LABELS = ("run", "stage", "rank", "host")
STAGE = "shards"


class ShardMetrics(BuildCallback):
    """The metrics of one shard job, in a separate registry."""

    def __init__(self, run: str, rank: int, host: str | None = None) -> None:
        self.registry = CollectorRegistry()
        self._values = (label_value(run), STAGE, str(rank), host or socket.gethostname())
        self.labels = dict(zip(LABELS, self._values, strict=True))
        self.samples = self._counter("smdt_shards_samples", "Samples in shards that were finished")
        self.bytes = self._counter("smdt_shards_bytes", "Bytes of the tars that were finished")
        self._rejected = Counter(
            "smdt_shards_rejected",
            "Source rows that are not in the shards",
            (*LABELS, "reason"),
            registry=self.registry,
        )
        self.planned = self._gauge("smdt_shards_planned", "Shards of this job")
        self.done = self._gauge("smdt_shards_done", "Shards of this job that are finished")

    def rejected(self, reason: str) -> Counter:
        """Counter of the rejected rows, by reason."""
        return self._rejected.labels(*self._values, reason)

    def begin(self, work: Work) -> None:
        """Set how many shards there are."""
        self.planned.set(work.shards)
        self.done.set(work.shards_done)

    def finish(self, summary: ShardSummary) -> None:
        """Count a shard."""
        self.samples.inc(summary.samples)
        self.bytes.inc(summary.tar_bytes)
        for rejection in summary.rejected:
            self.rejected(rejection.reason).inc()
        self.done.inc()

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, LABELS, registry=self.registry).labels(*self._values)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, LABELS, registry=self.registry).labels(*self._values)
