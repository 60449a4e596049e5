"""The loop: batches in, steps made, agreements kept, checkpoints and evaluations on their days.

It knows no stage by name and holds the only mutable state of a run: its `Progress`.
"""

import errno
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError

from data_shards.errors import UserError
from smdt.data.loader import Batch, DataConfig, TrainLoader
from smdt.telemetry.console import Display
from smdt.telemetry.metrics import TrainingMetrics
from smdt.training import checkpoint
from smdt.training.checkpoint import CheckpointConfig, Progress
from smdt.training.control import Agreement, Control
from smdt.training.engine import Engine
from smdt.training.mining import Mining
from smdt.training.run_folder import RunFolder, write_json
from smdt.training.schedule import Length, ScheduleConfig, Span, learning_rate_factor
from smdt.training.stage import BatchConfig, EvaluationData, Stage, StepContext
from smdt.training.stopping import StopRequest

_log = logging.getLogger(__name__)

FULL_BYTES = 1_000_000
"""A disk with less than this left is full."""


class RunConfig(BaseModel):
    """Which run this is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"[A-Za-z0-9._-]+")
    """Label of the run in metrics and reports."""
    out: str
    """The run folder."""
    seed: int = Field(0, ge=0)
    """Seed of weights, data order and augmentation."""
    timeout_seconds: float = Field(600.0, gt=0)
    """How long a collective waits for a lost rank before the run ends."""


class EvaluationConfig(BaseModel):
    """When and on what a run evaluates itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: str = "val"
    """Split of `data.shards`."""
    every: Length = Span(1, "epoch")
    """Distance between two evaluations; the end of the run always gets one."""
    batch: int = Field(32, gt=0)
    """Samples that a rank embeds at once."""
    max_missing: int = Field(0, ge=0)
    """How many unreadable samples an evaluation may leave out."""


class TrainerConfig(BaseModel):
    """The sections of a run's configuration that the loop itself reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: RunConfig
    data: DataConfig
    batch: BatchConfig = BatchConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


@dataclass(frozen=True)
class StepRecord:
    """What one step measured on this rank."""

    step: int
    epoch: int
    step_seconds: float
    data_wait_seconds: float
    compute_seconds: float
    learning_rate: Mapping[str, float]
    gradient_norm: Mapping[str, float]


class Trainer:
    """Runs a stage from where its progress stands to the end of the schedule.

    Args:
        config: the run.
        stage: what a step and an evaluation are.
        engines: the stage's modules under DeepSpeed, by name.
        loader: this rank's share of the global batches.
        context: seed, rank, world size, chunks and device; its step is ignored.
        folder: the run folder.
        control: the ranks' agreement.
        stop: whether this rank was asked to stop.
        metrics: this rank's metrics.
        display: what a person sees.
        config_yaml: the resolved configuration, saved with each checkpoint.
    """

    def __init__(
        self,
        config: TrainerConfig,
        stage: Stage,
        engines: Mapping[str, Engine],
        loader: TrainLoader,
        *,
        context: StepContext,
        folder: RunFolder,
        control: Control,
        stop: StopRequest,
        metrics: TrainingMetrics,
        display: Display,
        config_yaml: str,
    ) -> None:
        self._config = config
        self._stage = stage
        self._engines = engines
        self._loader = loader
        self._context = context
        self._folder = folder
        self._control = control
        self._stop = stop
        self._metrics = metrics
        self._display = display
        self._config_yaml = config_yaml
        self._mining = Mining(config.data.order, loader, stage, context, folder.neighbours)
        self._steps_per_epoch = loader.steps_per_epoch
        self._unreported: dict[int, StepRecord] = {}
        self._skipped_steps: dict[str, int] = {}

    def run(self, progress: Progress) -> Progress:
        """Train until the schedule or a stop request ends the run, then save.

        Returns:
            How far the run is: before the schedule's end if it was stopped.

        Raises:
            UserError: the loss is not finite.
        """
        total = self._config.schedule.length.steps(self._steps_per_epoch)
        epochs = -(-total // self._steps_per_epoch)
        self._display.step(progress.step, {})
        stopped = False
        while progress.step < total and not stopped:
            period = self._mining.period(progress.data, epochs)
            end = min(total, period.end_epoch * self._steps_per_epoch)
            stream = self._loader.stream(progress.data, period.end_epoch, period.table)
            with closing(stream):
                progress, stopped = self._train(stream, progress, end, total)
        return progress

    def _train(
        self, stream: Iterator[Batch], progress: Progress, end: int, total: int
    ) -> tuple[Progress, bool]:
        """Train up to step `end` of `total`, unless stopped before."""
        while progress.step < end:
            progress, losses = self._advance(stream, progress, total)
            evaluate = self._due(self._config.evaluation.every, progress.step, total)
            save = evaluate or self._due(self._config.checkpoint.every, progress.step, total)
            # The next period may find its neighbours by embedding: all ranks are done by then.
            stop = self._agree(progress.step, losses, settle=save or progress.step == end)
            if evaluate:
                progress = self._evaluate(progress)
            if save or stop:
                self._save(progress)
            if stop:
                return progress, True
        return progress, False

    def _due(self, every: Span, step: int, total: int) -> bool:
        return step == total or every.ends_at(step, self._steps_per_epoch)

    def _advance(
        self, stream: Iterator[Batch], progress: Progress, total: int
    ) -> tuple[Progress, Mapping[str, torch.Tensor]]:
        """Make one optimisation step; return the new progress and this rank's loss shares."""
        start = time.perf_counter()
        batch = next(stream)
        ready = time.perf_counter()
        factor = learning_rate_factor(progress.step, total, self._config.schedule)
        context = replace(self._context, step=progress.step, rate_factor=factor)
        losses = self._stage.step(self._engines, batch, context)
        end = time.perf_counter()
        step = progress.step + 1
        self._unreported[step] = StepRecord(
            step=step,
            epoch=batch.epoch,
            step_seconds=end - start,
            data_wait_seconds=ready - start,
            compute_seconds=end - ready,
            learning_rate={name: engine.learning_rate for name, engine in self._engines.items()},
            gradient_norm={name: engine.gradient_norm for name, engine in self._engines.items()},
        )
        samples = progress.samples + self._config.batch.global_batch
        return replace(progress, step=step, samples=samples, data=batch.state), losses

    def _agree(self, step: int, losses: Mapping[str, torch.Tensor], *, settle: bool) -> bool:
        """Exchange flags; report the step before, and with `settle` or a stop this one too.

        Returns:
            Whether any rank was asked to stop.
        """
        stop = self._report(self._control.post(step, losses, bool(self._stop)))
        if settle or stop:
            stop = self._report(self._control.collect()) or stop
        return stop

    def _report(self, agreement: Agreement | None) -> bool:
        """Publish a step that all ranks have agreed about; return whether to stop."""
        if agreement is None:
            return False
        record = self._unreported.pop(agreement.step)
        if not agreement.finite:
            raise UserError(
                f"step {agreement.step}: the loss is not finite ({dict(agreement.losses)}); "
                "lower optimizer.learning_rate or raise schedule.warmup_steps, "
                "then start again from the last checkpoint"
            )
        samples = self._config.batch.global_batch
        self._measure(record, agreement, samples // self._context.world_size)
        shown = {
            "loss": agreement.losses["loss"],
            "samples/s": samples / record.step_seconds,
        }
        self._display.step(agreement.step, shown)
        if self._context.rank == 0:
            self._folder.append_metrics(
                {"time": time.time(), **asdict(record), "losses": dict(agreement.losses)}
            )
        return agreement.stop

    def _measure(self, record: StepRecord, agreement: Agreement, samples: int) -> None:
        metrics = self._metrics
        metrics.steps.inc()
        metrics.samples.inc(samples)
        metrics.step_seconds.observe(record.step_seconds)
        metrics.data_wait_seconds.inc(record.data_wait_seconds)
        metrics.compute_seconds.inc(record.compute_seconds)
        metrics.last_step_timestamp_seconds.set_to_current_time()
        metrics.epoch.set(record.epoch)
        for term, value in agreement.losses.items():
            metrics.loss(term).set(value)
        for name, engine in self._engines.items():
            metrics.learning_rate(name).set(record.learning_rate[name])
            metrics.gradient_norm(name).set(record.gradient_norm[name])
            metrics.loss_scale(name).set(engine.loss_scale)
            skipped = metrics.skipped_steps(name)
            skipped.inc(max(0, engine.skipped_steps - self._skipped_steps.get(name, 0)))
            self._skipped_steps[name] = engine.skipped_steps

    def _evaluate(self, progress: Progress) -> Progress:
        """Evaluate the stage and remember its best score."""
        section = self._config.evaluation
        shards = self._config.data
        data = EvaluationData(
            shards.shards, section.split, section.batch, section.max_missing, shards.cache
        )
        evaluation = self._stage.evaluate(self._context, data)
        text = "  ".join(f"{name} {value:.4f}" for name, value in evaluation.scores.items())
        self._display.say(f"step {progress.step}: {text}")
        _log.info("step %d: %s", progress.step, text)
        for name, value in evaluation.scores.items():
            if name.startswith("R@"):
                self._metrics.recall(evaluation.protocol, name.removeprefix("R@")).set(value)
            else:
                self._metrics.image_quality(name).set(value)
        if self._context.rank == 0:
            scores = dict(evaluation.scores)
            self._folder.append_metrics(
                {"time": time.time(), "step": progress.step, "scores": scores}
            )
            write_json(
                self._folder.evaluation,
                {"step": progress.step, "scores": scores, **evaluation.details},
            )
        score = next(iter(evaluation.scores.values()))
        if progress.best is None or score > progress.best[0]:
            return replace(progress, best=(score, progress.step))
        return progress

    def _save(self, progress: Progress) -> None:
        start = time.perf_counter()
        folder = self._folder.checkpoints
        try:
            size = checkpoint.save(folder, self._engines, progress, self._config_yaml)
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch and safetensors say neither what they could not write nor where.
            free = shutil.disk_usage(folder).free
            refused = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            if not refused and free > FULL_BYTES:
                raise
            raise UserError(
                f"the checkpoint of step {progress.step} does not fit on the disk of {folder}, "
                f"which has {free / 1e6:.1f} MB left: free some or lower checkpoint.keep_last"
            ) from error
        if self._context.rank == 0:
            best = [] if progress.best is None else [progress.best[1]]
            keep_last = self._config.checkpoint.keep_last
            checkpoint.prune(self._folder.checkpoints, keep_last, best)
            kept = checkpoint.published(self._folder.checkpoints)
            states = [checkpoint.load_progress(saved).data for saved in kept]
            self._mining.prune([progress.data, *states])
        self._metrics.checkpoint_seconds.set(time.perf_counter() - start)
        self._metrics.checkpoint_bytes.set(size)
        self._metrics.checkpoint_last_success_timestamp_seconds.set_to_current_time()
