"""Measurements of every step, and their metrics.

A step is published when its status is reduced over all ranks, one step late; by then the device has
sent its measurements, so publishing does not wait.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from smdt.telemetry.metrics import TrainingMetrics
from smdt.training.deepspeed.collectives import CollectiveTimer
from smdt.training.deepspeed.device_work import DeviceScalars, DeviceTimer
from smdt.training.deepspeed.engine import Engine
from smdt.training.loop.stage import StepContext
from smdt.training.loop.step_status import StepStatus


@dataclass(frozen=True)
class StepRecord:
    """Measurements of one step on this rank.

    Attributes:
        step: its number, from 1.
        epoch: of its batch, from 0.
        step_seconds: from asking for the batch until the ranks had agreed about the step before.
        data_wait_seconds: of them, until the batch was there.
        compute_seconds: the stage's step by the device's clock, its collectives included.
        collective_wait_seconds: inside collectives.
        learning_rate: of each engine.
        gradient_norm: of each engine, before clipping; NaN if unknown.
        loss_scale: of each engine.
        finite: whether the step was made; else its loss or a gradient was NaN or infinite.
    """

    step: int
    epoch: int
    step_seconds: float
    data_wait_seconds: float
    compute_seconds: float
    collective_wait_seconds: float
    learning_rate: Mapping[str, float]
    gradient_norm: Mapping[str, float]
    loss_scale: Mapping[str, float]
    finite: bool

    def groups(self) -> dict[str, Mapping[str, float]]:
        """Return the curves that a step adds a point to, by group."""
        return {
            "seconds": {
                "step": self.step_seconds,
                "data wait": self.data_wait_seconds,
                "compute": self.compute_seconds,
                "collective wait": self.collective_wait_seconds,
            },
            "learning rate": self.learning_rate,
            "gradient norm": self.gradient_norm,
            "loss scale": self.loss_scale,
        }


class StepRecorder:
    """Measures the steps of one rank.

    Args:
        engines: whose rates, norms and scales are noted.
        collectives: of this process.
        metrics: of this rank.
        context: this rank.
        global_batch: samples of a step, over all ranks.
        ideal_step_seconds: how long a step would take at the device's peak; None if unknown.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        collectives: CollectiveTimer,
        metrics: TrainingMetrics,
        *,
        context: StepContext,
        global_batch: int,
        ideal_step_seconds: float | None = None,
    ) -> None:
        self._engines = engines
        self._collectives = collectives
        self._metrics = metrics
        self._device = context.device
        self._samples = global_batch // context.world_size
        self._ideal_step_seconds = ideal_step_seconds
        self._begun = 0.0
        self._unpublished_steps: dict[int, _Step] = {}
        self._skipped_steps = self._count_skipped().values()

    def _count_skipped(self) -> DeviceScalars:
        return DeviceScalars({name: engine.skipped_steps for name, engine in self._engines.items()})

    def start_run(self, step: int, total: int) -> None:
        """Say that the loop begins after `step` of `total` steps."""
        self._metrics.step.set(step)
        self._metrics.steps_planned.set(total)
        # A run that never makes its first step stalls too.
        self._metrics.last_step_timestamp_seconds.set_to_current_time()
        for name in self._engines:
            self._metrics.skipped_steps(name).inc(0)

    def start_step(self) -> None:
        """Start to measure a step: it asks for its batch now."""
        # What an evaluation or a checkpoint waited for is not the step's.
        if not self._unpublished_steps:
            self._collectives.take()
        self._begun = time.perf_counter()

    @contextmanager
    def measure_compute(self, step: int, epoch: int) -> Iterator[None]:
        """Measure the stage's step in the block; its batch is there."""
        wait = time.perf_counter() - self._begun
        compute = DeviceTimer(self._device)
        with compute.running():
            yield
        engines = self._engines.items()
        self._unpublished_steps[step] = _Step(
            begun=self._begun,
            epoch=epoch,
            data_wait_seconds=wait,
            compute=compute,
            learning_rate={name: engine.learning_rate for name, engine in engines},
            gradient_norm=DeviceScalars({name: engine.gradient_norm for name, engine in engines}),
            loss_scale={name: engine.loss_scale for name, engine in engines},
            skipped_steps=self._count_skipped(),
        )

    def end_step(self, step: int) -> None:
        """Stop the clock of a step."""
        measured = self._unpublished_steps[step]
        measured.step_seconds = time.perf_counter() - measured.begun
        measured.collectives = self._collectives.take()

    def publish(self, agreement: StepStatus) -> StepRecord:
        """Export what a step measured, once; return it."""
        measured = self._unpublished_steps.pop(agreement.step)
        counts = measured.skipped_steps.values()
        skipped = {name: count - self._skipped_steps[name] for name, count in counts.items()}
        self._skipped_steps = counts
        # Skipped steps are normal during the search for a loss scale.
        lost = [name for name, n in skipped.items() if n and not self._engines[name].scales_loss]
        record = measured.record(agreement.step, finite=agreement.finite and not lost)
        metrics = self._metrics
        metrics.step.set(record.step)
        metrics.steps.inc()
        metrics.samples.inc(self._samples)
        metrics.step_seconds.observe(record.step_seconds)
        metrics.data_wait_seconds.inc(record.data_wait_seconds)
        metrics.compute_seconds.inc(record.compute_seconds)
        metrics.collective_wait_seconds.inc(record.collective_wait_seconds)
        metrics.last_step_timestamp_seconds.set_to_current_time()
        metrics.epoch.set(record.epoch)
        if self._ideal_step_seconds is not None:
            metrics.model_flops_utilization.set(self._ideal_step_seconds / record.step_seconds)
        if not record.finite:
            metrics.nonfinite_steps.inc()
        for term, value in agreement.losses.items():
            metrics.loss(term).set(value)
        for name in self._engines:
            metrics.learning_rate(name).set(record.learning_rate[name])
            metrics.gradient_norm(name).set(record.gradient_norm[name])
            metrics.loss_scale(name).set(record.loss_scale[name])
            metrics.skipped_steps(name).inc(max(0.0, skipped[name]))
        return record


@dataclass
class _Step:
    """A step whose measurements are not published yet."""

    begun: float
    epoch: int
    data_wait_seconds: float
    compute: DeviceTimer
    learning_rate: Mapping[str, float]
    gradient_norm: DeviceScalars
    loss_scale: Mapping[str, float]
    skipped_steps: DeviceScalars
    step_seconds: float = 0.0
    collectives: list[DeviceTimer] | None = None

    def record(self, step: int, *, finite: bool) -> StepRecord:
        """Return what it measured, after the device is done with it."""
        return StepRecord(
            step=step,
            epoch=self.epoch,
            step_seconds=self.step_seconds,
            data_wait_seconds=self.data_wait_seconds,
            compute_seconds=self.compute.seconds(),
            collective_wait_seconds=sum(watch.seconds() for watch in self.collectives or ()),
            learning_rate=self.learning_rate,
            gradient_norm=self.gradient_norm.values(),
            loss_scale=self.loss_scale,
            finite=finite,
        )
