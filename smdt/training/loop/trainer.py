"""The loop: batches in, steps made, agreements kept, checkpoints and evaluations on their days.

It knows no stage by name and holds the only mutable state of a run: its `Progress`.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, replace

import torch
from pydantic import BaseModel, ConfigDict, Field

from smdt.data.loader import Batch, DataConfig, TrainLoader
from smdt.telemetry.console import Display
from smdt.telemetry.metrics import TrainingMetrics
from smdt.telemetry.tensorboard import EventWriter
from smdt.training.checkpoints.checkpoint import CheckpointConfig, Progress
from smdt.training.checkpoints.run_folder import RunFolder, write_json
from smdt.training.checkpoints.saving import Saver
from smdt.training.deepspeed.device_work import DeviceScalars
from smdt.training.deepspeed.engine import Engine
from smdt.training.loop.mining import HardNegativeMiner
from smdt.training.loop.nonfinite import NonFiniteGuard
from smdt.training.loop.stage import BatchConfig, EvaluationData, Stage, StepContext
from smdt.training.loop.step_recorder import StepRecorder
from smdt.training.loop.step_status import StepStatus, StepStatusReducer
from smdt.training.ranks.gathering import all_gather_ragged
from smdt.training.ranks.stopping import StopRequest
from smdt.training.schedule import Length, Plan, ScheduleConfig, Span

_log = logging.getLogger(__name__)


class RunConfig(BaseModel):
    """Name, folder and seed of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Label of the run in metrics and reports."""
    out: str
    """The run folder."""
    seed: int = Field(0, ge=0)
    """Seed of weights, data order and augmentation."""
    timeout_seconds: float = Field(600.0, gt=0)
    """Timeout of a collective."""
    max_lost_steps: int = Field(3, ge=0)
    """Steps in a row that may be skipped, their loss or gradient not finite; one more ends it."""


class EvaluationConfig(BaseModel):
    """Schedule and split of a run's own evaluations."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: str = "val"
    """Split of `data.shards`."""
    every: Length = Span(1, "epoch")
    """Distance between two evaluations; the end of the run always gets one."""
    batch: int = Field(32, gt=0)
    """Samples that a rank embeds at once."""
    max_missing: int = Field(0, ge=0)
    """Maximum number of unreadable samples in an evaluation."""


class TrainerConfig(BaseModel):
    """The sections of a run's configuration that the loop itself reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: RunConfig
    data: DataConfig
    batch: BatchConfig = BatchConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def evaluation_data(self) -> EvaluationData:
        """Return the inputs of the run's own evaluations."""
        own, data = self.evaluation, self.data
        return EvaluationData(data.shards, own.split, own.batch, own.max_missing, data.cache)


class Trainer:
    """Runs a stage from its progress to the end of the schedule.

    Args:
        config: the run.
        stage: what a step and an evaluation are.
        engines: the stage's modules under DeepSpeed, by name.
        loader: this rank's share of the global batches.
        context: seed, rank, world size, chunks and device; its step is ignored.
        folder: the run folder.
        control: the ranks' agreement.
        stop: whether this rank was asked to stop.
        recorder: measures the steps.
        metrics: this rank's metrics.
        display: the terminal output.
        events: writer of the curves, in addition to `metrics.jsonl`; of rank 0.
        records: files that each checkpoint carries, by name: what the run is made with; of rank 0.
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
        control: StepStatusReducer,
        stop: StopRequest,
        recorder: StepRecorder,
        metrics: TrainingMetrics,
        display: Display,
        events: EventWriter,
        records: Mapping[str, str],
    ) -> None:
        self._config = config
        self._stage = stage
        self._engines = engines
        self._loader = loader
        self._context = context
        self._folder = folder
        self._control = control
        self._stop = stop
        self._recorder = recorder
        self._metrics = metrics
        self._display = display
        self._events = events
        self._mining = HardNegativeMiner(
            config.data.order, loader, stage, context, folder.neighbours
        )
        self._saver = Saver(
            folder,
            config.checkpoint,
            records,
            engines=engines,
            metrics=metrics,
            keep_tables=self._mining.prune,
        )
        self._nonfinite_guard = NonFiniteGuard(config.run.max_lost_steps)
        self._sample_ids: dict[int, torch.Tensor] = {}

    def run(self, progress: Progress, plan: Plan) -> Progress:
        """Train until the schedule or a stop request ends the run, then save.

        Args:
            progress: of the run so far.
            plan: the remaining steps.

        Returns:
            How far the run is: before the schedule's end if it was stopped.

        Raises:
            UserError: too many steps in a row were not finite.
        """
        total = plan.total
        self._display.step(progress.step, {})
        self._recorder.start_run(progress.step, total)
        stopped = False
        while progress.step < total and not stopped:
            period = self._mining.period(progress.data, plan.epochs)
            stream = self._loader.stream(progress.data, period.end_epoch, period.table)
            with closing(stream):
                progress, stopped = self._train(stream, progress, period.end_epoch, plan)
        self._saver.settle(progress, wait=True)
        return progress

    def _train(
        self, stream: Iterator[Batch], progress: Progress, end_epoch: int, plan: Plan
    ) -> tuple[Progress, bool]:
        """Train until `end_epoch` epochs or all steps are done, unless stopped before."""
        total, ended = plan.total, False
        while progress.step < total and not ended:
            progress, losses = self._advance(stream, progress, plan)
            epochs = progress.data.epochs_done
            ended = epochs == end_epoch
            self._saver.settle(progress, wait=False)
            evaluate = self._due(self._config.evaluation.every, progress, total)
            save = evaluate or self._due(self._config.checkpoint.every, progress, total)
            # The next period may find its neighbours by embedding: all ranks are done by then.
            settle = save or ended or progress.step == total
            stop = self._agree(progress.step, losses, settle=settle)
            if evaluate:
                progress = self._evaluate(progress)
            if save or stop:
                self._saver.save(progress)
            if stop:
                return progress, True
        return progress, False

    def _due(self, every: Span, progress: Progress, total: int) -> bool:
        step, epochs = progress.step, progress.data.epochs_done
        return step == total or every.ends_at(step, epochs)

    def _advance(
        self, stream: Iterator[Batch], progress: Progress, plan: Plan
    ) -> tuple[Progress, Mapping[str, torch.Tensor]]:
        """Make one optimisation step; return the new progress and this rank's loss shares."""
        self._recorder.start_step()
        batch = next(stream)
        step = progress.step + 1
        factor = plan.rate_factor(progress.step, self._config.schedule)
        context = replace(self._context, step=progress.step, rate_factor=factor)
        with self._recorder.measure_compute(step, batch.epoch):
            losses = self._stage.step(self._engines, batch, context)
        self._sample_ids[step] = torch.from_numpy(batch.sample_ids)
        samples = progress.samples + self._config.batch.global_batch
        return replace(progress, step=step, samples=samples, data=batch.state), losses

    def _agree(self, step: int, losses: Mapping[str, torch.Tensor], *, settle: bool) -> bool:
        """Exchange flags; report the step before, and with `settle` or a stop this one too.

        Returns:
            Whether any rank was asked to stop.
        """
        agreed = [self._control.post(step, DeviceScalars(losses), bool(self._stop))]
        if settle or any(each is not None and each.stop for each in agreed):
            agreed.append(self._control.collect())
        self._recorder.end_step(step)
        known = [each for each in agreed if each is not None]
        for each in known:
            self._report(each)
        return any(each.stop for each in known)

    def _report(self, agreement: StepStatus) -> None:
        """Publish a step that all ranks have agreed about."""
        record = self._recorder.publish(agreement)
        own = self._sample_ids.pop(agreement.step)
        lost: dict[str, list[str]] = {}
        if not record.finite:
            lost["lost_keys"] = [self._loader.split.key(n) for n in all_gather_ragged(own).tolist()]
        rate = self._config.batch.global_batch / record.step_seconds
        self._display.step(agreement.step, {"loss": agreement.losses["loss"], "samples/s": rate})
        if self._context.rank == 0:
            losses = dict(agreement.losses)
            self._folder.append_metrics(
                {"time": time.time(), **asdict(record), "losses": losses, **lost}
            )
            self._events.step(agreement.step, {"loss": agreement.losses, **record.groups()})
        if record.finite:
            self._nonfinite_guard.keep()
        else:
            self._nonfinite_guard.lose(agreement.step, agreement.losses, lost["lost_keys"])

    def _evaluate(self, progress: Progress) -> Progress:
        """Evaluate the stage and remember its best score."""
        evaluation = self._stage.evaluate(self._context, self._config.evaluation_data)
        text = "  ".join(f"{name} {value:.4f}" for name, value in evaluation.scores.items())
        self._display.say(f"step {progress.step}: {text}")
        _log.info("step %d: %s", progress.step, text)
        for name, value in evaluation.scores.items():
            if name.startswith("R@") or name == "hit rate":
                self._metrics.recall(evaluation.protocol, name.removeprefix("R@")).set(value)
            else:
                self._metrics.image_quality(name).set(value)
        if self._context.rank == 0:
            scores = dict(evaluation.scores)
            self._folder.append_metrics(
                {"time": time.time(), "step": progress.step, "scores": scores}
            )
            self._events.step(progress.step, {"score": scores})
            write_json(
                self._folder.evaluation,
                {"step": progress.step, "scores": scores, **evaluation.details},
            )
        score = next(iter(evaluation.scores.values()))
        if progress.best is None or score > progress.best[0]:
            return replace(progress, best=(score, progress.step))
        return progress
