"""Every metric that a training or evaluation process exports, declared once.

Names, units and labels are a contract with the dashboards and alerts: change them together.
Each rank owns its own registry; the labels `run`, `stage`, `rank` and `host` stand on every sample.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LABELS = ("run", "stage", "rank", "host")
STEP_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 150.0)
READ_BUCKETS = (1e-4, 2.5e-4, 1e-3, 2.5e-3, 1e-2, 2.5e-2, 0.1, 0.25, 1.0, 2.5, 10.0)


_Labelled = TypeVar("_Labelled", Counter, Gauge)


class TrainingMetrics:
    """The metrics of one rank, in a registry of its own.

    Attributes carry the metric's name without the `smdt_` prefix; methods stand for metrics with
    a further label.
    """

    def __init__(self, run: str, stage: str, rank: int, host: str | None = None) -> None:
        self.registry = CollectorRegistry()
        self._values = (run, stage, str(rank), host or socket.gethostname())
        self.samples = self._counter("smdt_samples", "Samples that optimisation steps consumed")
        self.steps = self._counter("smdt_steps", "Optimisation steps")
        self.step_seconds = self._histogram("smdt_step_seconds", "Whole step", STEP_BUCKETS)
        self.data_wait_seconds = self._counter(
            "smdt_data_wait_seconds", "Time that steps waited for their batch"
        )
        self.compute_seconds = self._counter(
            "smdt_compute_seconds", "Time in the stage's step, from batch to updated weights"
        )
        self.collective_wait_seconds = self._counter(
            "smdt_collective_wait_seconds", "Time blocked in the control all-reduce"
        )
        self.last_step_timestamp_seconds = self._gauge(
            "smdt_last_step_timestamp_seconds", "Unix time at which the last step ended"
        )
        self.epoch = self._gauge("smdt_epoch", "Epoch, from 0")
        self.read_bytes = self._counter("smdt_read_bytes", "Bytes read from shards")
        self.read_seconds = self._histogram(
            "smdt_read_seconds", "Time to read one part of a sample", READ_BUCKETS
        )
        self.checkpoint_seconds = self._gauge(
            "smdt_checkpoint_seconds", "Duration of the last checkpoint"
        )
        self.checkpoint_bytes = self._gauge("smdt_checkpoint_bytes", "Size of the last checkpoint")
        self.checkpoint_last_success_timestamp_seconds = self._gauge(
            "smdt_checkpoint_last_success_timestamp_seconds", "Unix time of the last checkpoint"
        )
        self._loss = self._labelled(Gauge, "smdt_loss", "Loss by term", "term")
        self._learning_rate = self._labelled(
            Gauge, "smdt_learning_rate", "Learning rate of an engine", "engine"
        )
        self._gradient_norm = self._labelled(
            Gauge, "smdt_gradient_norm", "Norm before clipping", "engine"
        )
        self._loss_scale = self._labelled(Gauge, "smdt_loss_scale", "Loss scale", "engine")
        self._skipped_steps = self._labelled(
            Counter, "smdt_skipped_steps", "Steps that an engine skipped", "engine"
        )
        self._quarantined = self._labelled(
            Counter, "smdt_quarantined_samples", "Samples replaced by a stand-in", "reason"
        )
        self._recall = Gauge(
            "smdt_recall", "Recall, 0 to 1", (*LABELS, "protocol", "k"), registry=self.registry
        )
        self._image_quality = self._labelled(
            Gauge, "smdt_image_quality", "Scores of generated images and class maps", "metric"
        )

    def loss(self, term: str) -> Gauge:
        """Gauge of one term of the loss."""
        return self._loss.labels(*self._values, term)

    def learning_rate(self, engine: str) -> Gauge:
        """Gauge of an engine's learning rate."""
        return self._learning_rate.labels(*self._values, engine)

    def gradient_norm(self, engine: str) -> Gauge:
        """Gauge of an engine's gradient norm before clipping."""
        return self._gradient_norm.labels(*self._values, engine)

    def loss_scale(self, engine: str) -> Gauge:
        """Gauge of an engine's loss scale (1 without fp16)."""
        return self._loss_scale.labels(*self._values, engine)

    def skipped_steps(self, engine: str) -> Counter:
        """Counter of the steps that an engine skipped."""
        return self._skipped_steps.labels(*self._values, engine)

    def quarantined_samples(self, reason: str) -> Counter:
        """Counter of samples replaced by a stand-in, by reason."""
        return self._quarantined.labels(*self._values, reason)

    def recall(self, protocol: str, k: str) -> Gauge:
        """Gauge of recall at k (`"1"`, `"5"`, `"10"`, `"1%"`), 0 to 1."""
        return self._recall.labels(*self._values, protocol, k)

    def image_quality(self, metric: str) -> Gauge:
        """Gauge of a score of images, such as `SSIM`, `PSNR` (dB) or `mIoU`."""
        return self._image_quality.labels(*self._values, metric)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, LABELS, registry=self.registry).labels(*self._values)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, LABELS, registry=self.registry).labels(*self._values)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        made = Histogram(name, text, LABELS, registry=self.registry, buckets=buckets)
        return made.labels(*self._values)

    def _labelled(self, kind: type[_Labelled], name: str, text: str, label: str) -> _Labelled:
        return kind(name, text, (*LABELS, label), registry=self.registry)


@contextmanager
def added_seconds(counter: Counter) -> Iterator[None]:
    """Add the wall time of the block to `counter`."""
    start = perf_counter()
    try:
        yield
    finally:
        counter.inc(perf_counter() - start)
