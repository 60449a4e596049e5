"""Checks before a run resumes: the checkpoint, and the changes since.

`smdt.training.checkpoints.config_changes` compares configurations; this module reads both sides and
checks the data set, the shapes of the weights, and the rest of the schedule.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from data_shards.base.errors import InputError
from smdt.data.loader import TrainLoader
from smdt.data.neighbours import NeighbourTable
from smdt.data.order import DataState, batches_left
from smdt.stages import config as configuration
from smdt.stages.base_config import Config
from smdt.stages.retrieval.aligned import pin_alignment_weights
from smdt.training.checkpoints import checkpoint, config_changes
from smdt.training.checkpoints.checkpoint import Progress
from smdt.training.checkpoints.config_changes import Effect
from smdt.training.checkpoints.resume import check_zero_stage
from smdt.training.checkpoints.run_environment import versions
from smdt.training.checkpoints.run_folder import RunFolder
from smdt.training.deepspeed.settings import zero_stage
from smdt.training.loop.stage import Stage
from smdt.training.schedule import Plan


def check_resume(
    config: Config,
    settings: Mapping[str, Any],
    folder: Path,
    loader: TrainLoader,
    run: RunFolder,
    world_size: int,
) -> "Changes":
    """Check that a run can resume from a checkpoint with this configuration.

    Args:
        config: of the run.
        settings: DeepSpeed's own configuration.
        folder: the checkpoint, whole.
        loader: of the run.
        run: its folder.
        world_size: its ranks.

    Raises:
        UserError: it cannot; one sentence that says what to do.
    """
    found = compare_with_checkpoint(
        pin_alignment_weights(config, folder), settings, folder, world_size
    )
    nothing_left = check_remaining_steps(config, loader, folder, run)
    return replace(found, lines=(*found.lines, *nothing_left))


@dataclass(frozen=True)
class Changes:
    """Changes between a checkpoint and the run that resumes from it.

    Attributes:
        lines: for the user: what takes effect, and what else there is to know.
        best_holds: whether scores are measured as the checkpoint's best one was.
    """

    lines: tuple[str, ...]
    best_holds: bool


def compare_with_checkpoint(
    config: Config, settings: Mapping[str, Any], folder: Path, world_size: int
) -> Changes:
    """Compare the configuration of a checkpoint with the present one.

    Args:
        config: of the run, as `pin_alignment_weights` returns it.
        settings: DeepSpeed's own configuration.
        folder: the checkpoint, whole.
        world_size: ranks of the run.

    Raises:
        InputError: the run cannot resume with it; one sentence with key, both values and what to
            do.
    """
    progress = checkpoint.load_progress(folder)
    found = config_changes.compare_configs(_config_of(folder), config_to_json(config))
    refused = config_changes.incompatibility_message(found, str(folder))
    if refused:
        raise InputError(refused)
    check_zero_stage(folder, progress, zero_stage(settings))
    lines = config_changes.lines(found)
    recorded = folder / checkpoint.DEEPSPEED
    if recorded.is_file():
        deepspeed = config_changes.compare_deepspeed(json.loads(recorded.read_text()), settings)
        refused = config_changes.incompatibility_message(deepspeed, str(folder))
        if refused:
            raise InputError(f"DeepSpeed configuration: {refused}")
        lines += config_changes.lines(deepspeed)
        environment = json.loads((folder / checkpoint.ENVIRONMENT).read_text())
        lines += config_changes.compare_environments(environment, versions())
    else:
        lines.append(
            f"{folder} does not say with which DeepSpeed configuration and versions an older SMDT "
            "wrote it: its configuration and ZeRO stage were compared"
        )
    if progress.world_size != world_size:
        lines.append(f"{world_size} ranks resume where {progress.world_size} stopped")
    best_holds = all(each.effect is not Effect.EVALUATION for each in found)
    return Changes(tuple(lines), best_holds)


def check_shapes(stage: Stage, folder: Path) -> None:
    """Check that a checkpoint's weights are those of a stage's modules, before any is loaded.

    Raises:
        InputError: they are not; the sentence names the first that differs.
    """
    modules = stage.modules()
    needed = {
        f"{name}.{key}": tuple(parameter.shape)
        for name, module in modules.items()
        for key, parameter in module.named_parameters(remove_duplicate=False)
    }
    buffers = {
        f"{name}.{key}"
        for name, module in modules.items()
        for key, _ in module.named_buffers(remove_duplicate=False)
    }
    with safe_open(folder / checkpoint.WEIGHTS, framework="pt") as file:
        there = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    for key in sorted(needed.keys() | (there.keys() - buffers)):
        ours, theirs = needed.get(key), there.get(key)
        if ours != theirs:
            raise InputError(
                f"checkpoint {folder} holds {_shape(theirs)} as {key}, and the configured "
                f"model has {_shape(ours)}: set `model` and `loss` back to its "
                f"{checkpoint.CONFIG}, "
                "or start a new run with another run.out"
            )


def resume_data_state(loader: TrainLoader, state: DataState, tables: Path) -> DataState:
    """Return the data state to resume at, with what its epoch has left for the present batch size.

    Args:
        loader: of the run.
        state: the checkpoint's.
        tables: folder of the run's neighbour tables.

    Raises:
        UserError: the state is of other data, or its table is missing.
    """

    def table() -> NeighbourTable | None:
        return NeighbourTable.load(tables, state.table_hash) if state.table_hash else None

    return loader.resumed(state, table)


def check_remaining_steps(
    config: Config, loader: TrainLoader, folder: Path, run: RunFolder
) -> list[str]:
    """Say that nothing is left to train, where that is so.

    Raises:
        UserError: the checkpoint is past the end of the schedule, or of other data; or what is
            left of the last epoch makes no batch.
    """
    progress = checkpoint.load_progress(folder)
    data = resume_data_state(loader, progress.data, run.neighbours)
    length = config.schedule.length
    plan = make_plan(config, loader, replace(progress, data=data))
    done = f"{folder} is at step {progress.step}, in epoch {data.epoch + 1}"
    if plan.total < progress.step:
        raise InputError(
            f"schedule.length is {length}, and {done}: set it to more, or run.out to a new folder"
        )
    if plan.total > progress.step:
        return []
    before = progress.data
    size = before.cuts[-1][0] if before.cuts else config.batch.global_batch
    if length.unit == "epoch" and batches_left(before, loader.split.places, size):
        raise InputError(
            f"batch.global is {config.batch.global_batch}, more than {done}, has left of its last "
            f"one: set batch.global to less, or schedule.length to more than {length}"
        )
    return [f"nothing is left to train: {done}, and schedule.length is {length}"]


def make_plan(config: Config, loader: TrainLoader, progress: Progress) -> Plan:
    """Return the plan of the remaining steps; `resume_data_state` has set the data state."""
    data, every = progress.data, loader.steps_per_epoch
    assert data.left is not None, "its place is known"
    return Plan.of(config.schedule.length, progress.step, data.epoch, data.left, every)


def config_to_json(config: Config) -> dict[str, Any]:
    """Return a configuration as its YAML holds it."""
    return config.model_dump(mode="json", by_alias=True)


def _config_of(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's configuration, with the defaults of keys that it does not have."""
    file = folder / checkpoint.CONFIG
    try:
        return config_to_json(configuration.load(file))
    except InputError:
        # Of another version: it is compared without defaults.
        content = yaml.safe_load(file.read_text())
        if not isinstance(content, dict):
            raise
        return content


def _shape(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else f"{list(shape)}"
