"""Train one stage: the entry point that `deepspeed --module smdt.train` starts on every rank."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
import typer

from data_shards.base.atomic import write_atomic
from data_shards.base.errors import EXIT_STOPPED, run
from smdt.stages import config as configuration
from smdt.stages.base_config import Config
from smdt.stages.initial import initialise
from smdt.stages.registry import make_stage
from smdt.stages.resume_checks import check_resume, check_shapes, make_plan, resume_data_state
from smdt.stages.retrieval.aligned import pin_alignment_weights
from smdt.stages.setup import ideal_seconds_of, open_engines, open_loader, require_data
from smdt.stages.weights import match_norms
from smdt.telemetry.console import Display, ProgressBar
from smdt.telemetry.memory import memory_readers
from smdt.telemetry.metrics import TrainingMetrics
from smdt.telemetry.tensorboard import EventWriter, TensorBoard
from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.checkpoint import Progress
from smdt.training.checkpoints.failure import recorded
from smdt.training.checkpoints.resume import ResumePoint, find_resume_point
from smdt.training.checkpoints.run_environment import environment, hosts_of_ranks, run_info
from smdt.training.checkpoints.run_folder import RunFolder, write_json
from smdt.training.deepspeed.collectives import CollectiveTimer
from smdt.training.deepspeed.engine import init_distributed
from smdt.training.deepspeed.settings import zero_stage
from smdt.training.loop.stage import StepContext
from smdt.training.loop.step_recorder import StepRecorder
from smdt.training.loop.step_status import StepStatusReducer
from smdt.training.loop.trainer import Trainer
from smdt.training.ranks.cpu import keep_freed_memory, set_thread_count
from smdt.training.ranks.environment import rank_and_world_size
from smdt.training.ranks.lease import ATTEMPT_VARIABLE, LEASE_VARIABLE
from smdt.training.ranks.lease_holder import LeaseHolder
from smdt.training.ranks.rendezvous import Rendezvous
from smdt.training.ranks.stopping import StopRequest, exit_with_parent

_log = logging.getLogger(__name__)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def train(
    config: Annotated[
        Path, typer.Option("--config", help="YAML of the run, or a name from `smdt configs`.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="section.key=value")] = None,
    deepspeed_config: Annotated[
        Path | None,
        typer.Option("--deepspeed_config", help="DeepSpeed's own JSON, or zero0 to zero3."),
    ] = None,
    resume: Annotated[str, typer.Option(help="auto, never, or a checkpoint folder.")] = "auto",
    local_rank: Annotated[int | None, typer.Option("--local_rank", hidden=True)] = None,
) -> int:
    """Train one stage on this rank; `deepspeed` starts one such process for each rank."""
    del local_rank  # DeepSpeed's launcher says it in the environment as well
    exit_with_parent()
    _, world_size = rank_and_world_size()
    run_config = configuration.load(config, overrides or [])
    settings = configuration.load_deepspeed(deepspeed_config)
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    configuration.check_ranks(run_config, world_size, local_ranks)
    folder = RunFolder(run_config.run.out)
    folder.create()
    progress, total = train_rank(run_config, settings, folder, resume)
    return 0 if progress.step >= total else EXIT_STOPPED


def train_rank(
    config: Config, user_settings: Mapping[str, Any], folder: RunFolder, resume: str
) -> tuple[Progress, int]:
    """Build everything this rank needs, and train from the start or a checkpoint.

    Args:
        config: the run.
        user_settings: DeepSpeed's own configuration, with its `"auto"` values.
        folder: the run folder, created.
        resume: `auto`, `never`, or a checkpoint folder.

    Returns:
        How far the run is, and its length in steps.

    Raises:
        UserError: what the user can fix, in one sentence.
    """
    stop = StopRequest(folder.stop)
    stop.listen()
    set_thread_count()
    keep_freed_memory()
    rank, world_size = rank_and_world_size()
    log_to(folder.logs / f"rank-{rank:05d}.log")

    with ExitStack() as held:

        def decide() -> str:
            held.enter_context(hold_lease(folder))  # refused, this process writes nothing
            with recorded(folder, rank=rank):
                return decide_resume_point(
                    config, user_settings, folder, resume, world_size
                ).to_json()

        with recorded(folder, rank=rank, heard=True):
            rendezvous = Rendezvous(config.run.timeout_seconds)
            origin = ResumePoint.from_json(rendezvous.run_on_rank_zero(decide))
        with recorded(folder, rank=rank):
            return train_from(origin, config, user_settings, folder, stop)


def hold_lease(folder: RunFolder) -> AbstractContextManager[object]:
    """Hold the run's lease where no launcher does; refuses a folder that another run writes."""
    if LEASE_VARIABLE in os.environ:
        return nullcontext()

    def leave() -> None:
        _log.error("another process has taken over the run of %s", folder.root)
        os._exit(1)

    return LeaseHolder(folder.lease, leave)


def decide_resume_point(
    config: Config,
    user_settings: Mapping[str, Any],
    folder: RunFolder,
    resume: str,
    world_size: int,
) -> ResumePoint:
    """Decide what the run resumes from; rank 0 alone calls it, before a process group is made.

    Raises:
        UserError: there is no usable checkpoint, or the run cannot resume from it with this
            configuration.
    """

    def examine_it(found: Path) -> bool:
        metrics = TrainingMetrics(config.run.name, config.stage, 0)
        loader = open_loader(config, folder, metrics, 0, world_size, torch.device("cpu"))
        changes = check_resume(config, user_settings, found, loader, folder, world_size)
        for line in changes.lines:
            _log.info("%s", line)
            if LEASE_VARIABLE not in os.environ:  # else the launcher has printed it
                typer.echo(line, err=True)
        return changes.best_holds

    return find_resume_point(folder, resume, zero_stage(user_settings), world_size, examine_it)


def train_from(
    origin: ResumePoint,
    config: Config,
    user_settings: Mapping[str, Any],
    folder: RunFolder,
    stop: StopRequest,
) -> tuple[Progress, int]:
    """Train a rank; all ranks have agreed on the checkpoint."""
    collectives = CollectiveTimer()
    collectives.watch()
    device = init_distributed(config.run.timeout_seconds)
    progress, total = run_stage(config, user_settings, folder, origin, device, stop, collectives)
    if dist.get_rank() == 0:
        end: Literal["done", "preempted"] = "done" if progress.step >= total else "preempted"
        folder.note(end, step=progress.step)
        folder.write_state(end, progress.step)
    dist.barrier()
    dist.destroy_process_group()
    return progress, total


def run_stage(
    config: Config,
    user_settings: Mapping[str, Any],
    folder: RunFolder,
    origin: ResumePoint,
    device: torch.device,
    stop: StopRequest,
    collectives: CollectiveTimer,
) -> tuple[Progress, int]:
    """Do what `train_rank` does, in a process group that is there."""
    config.telemetry.check()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    config = pin_alignment_weights(config, origin.checkpoint)

    metrics = TrainingMetrics(config.run.name, config.stage, rank)
    torch.manual_seed(config.run.seed)
    stage = make_stage(config)
    started_from = None
    if origin.checkpoint is None:
        started_from = initialise(stage, config)
    else:
        match_norms(stage, origin.checkpoint)
    loader = open_loader(config, folder, metrics, rank, world_size, device)
    require_data(stage, config, loader.split)
    if origin.checkpoint is not None:
        check_shapes(stage, origin.checkpoint)
    context = StepContext(0, config.run.seed, rank, world_size, config.batch.chunks, device)
    ideal_seconds = ideal_seconds_of(config, stage, context)
    engines = open_engines(config, user_settings, stage, world_size, universal=origin.universal)
    progress = Progress(0, 0, world_size, zero_stage(user_settings), loader.start)
    if origin.checkpoint is not None:
        progress = origin.progress(world_size)
        origin.load(engines)
    progress = replace(progress, data=resume_data_state(loader, progress.data, folder.neighbours))
    plan = make_plan(config, loader, progress)
    total = plan.total
    hosts = hosts_of_ranks()
    display = ProgressBar(total, config.run.name) if rank == 0 else Display()
    wants_events = rank == 0 and config.telemetry.tensorboard
    events = TensorBoard(folder.tensorboard, progress.step) if wants_events else EventWriter()
    trainer = Trainer(
        config,
        stage,
        engines,
        loader,
        context=context,
        folder=folder,
        control=StepStatusReducer(),
        stop=stop,
        recorder=StepRecorder(
            engines,
            collectives,
            metrics,
            context=context,
            global_batch=config.batch.global_batch,
            ideal_step_seconds=ideal_seconds,
        ),
        metrics=metrics,
        display=display,
        events=events,
        records=records(config, user_settings, hosts, device) if rank == 0 else {},
    )
    if rank == 0:
        open_run(folder, config, progress.step, hosts, device)
        if started_from is not None:
            write_json(folder.init, started_from.to_json())
            for line in started_from.lines():
                display.say(line)
        loader.rewind_quarantine(progress.data)
    dist.barrier()
    describe_run(config, metrics, user_settings, device)
    served = config.telemetry.serve(
        metrics.registry,
        metrics.labels,
        entry=f"{config.run.name}-rank-{rank:05d}",
        run_targets=folder.targets,
        port_offset=int(os.environ.get("LOCAL_RANK", "0")),
    )
    with served, display, closing(events):
        progress = trainer.run(progress, plan)
    return progress, total


def describe_run(
    config: Config,
    metrics: TrainingMetrics,
    user_settings: Mapping[str, Any],
    device: torch.device,
) -> None:
    """Set the metrics that hold for all of the run, or from its start on."""
    metrics.read_device_memory(memory_readers(device))
    # A failure costs what was trained since: at a resume nothing, however old its checkpoint is.
    metrics.checkpoint_last_success_timestamp_seconds.set_to_current_time()
    zero = zero_stage(user_settings)
    metrics.run_info(run_info(device, config.precision, zero, config.batch.global_batch))


def log_to(file: Path) -> None:
    """Send this rank's log to its file."""
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(
        level=logging.INFO, format=form, handlers=[logging.FileHandler(file)], force=True
    )


def records(
    config: Config, user_settings: Mapping[str, Any], hosts: Sequence[str], device: torch.device
) -> dict[str, str]:
    """Return the records of a new checkpoint, by file name."""
    return {
        checkpoint.CONFIG: config.to_yaml(),
        checkpoint.DEEPSPEED: json.dumps(user_settings, indent=2) + "\n",
        checkpoint.ENVIRONMENT: json.dumps(environment(hosts, device.type), indent=2) + "\n",
    }


def open_run(
    folder: RunFolder, config: Config, step: int, hosts: Sequence[str], device: torch.device
) -> None:
    """Write the run folder's records when a run starts or resumes at `step`."""
    # The launcher removes an old stop file itself, before a new one can be written.
    if ATTEMPT_VARIABLE not in os.environ:
        folder.stop.unlink(missing_ok=True)
    folder.rewind_metrics(step)
    write_atomic(folder.config, config.to_yaml().encode())
    write_json(folder.environment, environment(hosts, device.type))
    folder.note("started", step=step, ranks=len(hosts))
    folder.write_state("running", step)


def main() -> None:
    """Run `smdt.train` as a program."""
    run(app)


if __name__ == "__main__":
    main()
