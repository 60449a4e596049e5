"""Every metric that a training or evaluation process exports, declared once.

Names, units and labels are a contract with the dashboards and alerts: change them together.
Each rank owns its own registry; every sample has the labels `run`, `stage`, `rank` and `host`.
"""

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from data_shards.base.names import label_value

LABELS = ("run", "stage", "rank", "host")
STEP_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 150.0)
DAMAGE_REASONS = ("checksum", "truncated", "missing")
"""Why samples are replaced."""
READ_BUCKETS = (1e-4, 2.5e-4, 1e-3, 2.5e-3, 1e-2, 2.5e-2, 0.1, 0.25, 1.0, 2.5, 10.0)


_Labelled = TypeVar("_Labelled", Counter, Gauge)


class LazyGauge:
    """A gauge that is exported from the first time on that it is set: unknown is not 0."""

    def __init__(self, gauge: Gauge, values: Sequence[str]) -> None:
        self._gauge = gauge
        self._values = values

    def set(self, value: float) -> None:
        """Set the value."""
        self._gauge.labels(*self._values).set(value)

    def set_to_current_time(self) -> None:
        """Set it to the Unix time."""
        self._gauge.labels(*self._values).set_to_current_time()


class TrainingMetrics:
    """The metrics of one rank, in a separate registry.

    Attributes carry the metric's name without the `smdt_` prefix; methods stand for metrics with
    a further label. `labels` are those of every sample.
    """

    def __init__(self, run: str, stage: str, rank: int, host: str | None = None) -> None:
        self.registry = CollectorRegistry()
        self._values = (label_value(run), stage, str(rank), host or socket.gethostname())
        self.labels = dict(zip(LABELS, self._values, strict=True))
        self.samples = self._counter("smdt_samples", "Samples that optimisation steps consumed")
        self.steps = self._counter("smdt_steps", "Optimisation steps")
        self.step = self._gauge("smdt_step", "Optimisation steps of the run, over its resumes")
        self.steps_planned = self._gauge("smdt_steps_planned", "Length of the run")
        self.nonfinite_steps = self._counter(
            "smdt_nonfinite_steps", "Steps whose loss or gradient was NaN or infinite"
        )
        self.step_seconds = self._histogram("smdt_step_seconds", "Whole step", STEP_BUCKETS)
        self.data_wait_seconds = self._counter(
            "smdt_data_wait_seconds", "Time that steps waited for their batch"
        )
        self.compute_seconds = self._counter(
            "smdt_compute_seconds", "Time in the stage's step, from batch to updated weights"
        )
        self.collective_wait_seconds = self._counter(
            "smdt_collective_wait_seconds", "Time inside the collectives of steps"
        )
        self.model_flops_utilization = self._gauge(
            "smdt_model_flops_utilization", "Model FLOPs of the last step over the device's peak"
        )
        self.last_step_timestamp_seconds = self._gauge(
            "smdt_last_step_timestamp_seconds",
            "Unix time at which the last step ended, or the loop began",
        )
        self.epoch = self._gauge("smdt_epoch", "Epoch, from 0")
        self.read_bytes = self._counter("smdt_read_bytes", "Bytes read from shards")
        self.read_seconds = self._histogram(
            "smdt_read_seconds", "Time to read one part of a sample", READ_BUCKETS
        )
        self.checkpoint_seconds = self._gauge(
            "smdt_checkpoint_seconds", "How long training waited for the last checkpoint"
        )
        self.checkpoint_bytes = self._gauge("smdt_checkpoint_bytes", "Size of the last checkpoint")
        self.checkpoint_last_success_timestamp_seconds = self._gauge(
            "smdt_checkpoint_last_success_timestamp_seconds",
            "Unix time of the process's last checkpoint, or of its start before one",
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
        for reason in DAMAGE_REASONS:
            self.quarantined_samples(reason)  # a rate needs the zero before the first
        self._recall = Gauge(
            "smdt_recall", "Recall, 0 to 1", (*LABELS, "protocol", "k"), registry=self.registry
        )
        self._image_quality = self._labelled(
            Gauge, "smdt_image_quality", "Scores of generated images and class maps", "metric"
        )
        self._device_memory_bytes = self._labelled(
            Gauge, "smdt_device_memory_bytes", "Memory of the rank's device", "kind"
        )
        self._run = Info("smdt_run", "What runs", LABELS, registry=self.registry)

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
        """Counter of replaced samples, by reason."""
        return self._quarantined.labels(*self._values, reason)

    def recall(self, protocol: str, k: str) -> Gauge:
        """Gauge of recall at k (`"1"`, `"5"`, `"10"`, `"1%"`), 0 to 1."""
        return self._recall.labels(*self._values, protocol, k)

    def image_quality(self, metric: str) -> Gauge:
        """Gauge of a score of images, such as `SSIM`, `PSNR` (dB) or `mIoU`."""
        return self._image_quality.labels(*self._values, metric)

    def read_device_memory(self, readers: Mapping[str, Callable[[], float]]) -> None:
        """Read bytes of the device's memory at every scrape, by kind."""
        for kind, read in readers.items():
            self._device_memory_bytes.labels(*self._values, kind).set_function(read)

    def run_info(self, info: Mapping[str, str]) -> None:
        """Say what runs: versions and sizes, nothing that is secret or differs between samples."""
        self._run.labels(*self._values).info(dict(info))

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, LABELS, registry=self.registry).labels(*self._values)

    def _gauge(self, name: str, text: str) -> LazyGauge:
        return LazyGauge(Gauge(name, text, LABELS, registry=self.registry), self._values)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        made = Histogram(name, text, LABELS, registry=self.registry, buckets=buckets)
        return made.labels(*self._values)

    def _labelled(self, kind: type[_Labelled], name: str, text: str, label: str) -> _Labelled:
        return kind(name, text, (*LABELS, label), registry=self.registry)
