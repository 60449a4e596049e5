"""Checkpoints: written to a temporary name by all ranks, published by one rename, verified on load.

A published folder `step-00001000` holds each engine's DeepSpeed state, `weights.safetensors` (fp32,
gathered, names `<engine>.<parameter>`), `progress.json`, what the run is made with (`config.yaml`,
`deepspeed.json`, `environment.json`), and `files.json` with the size and hash of every other file.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_shards.base.atomic import sync_folder, write_atomic
from data_shards.base.errors import InputError, UserError
from data_shards.base.store import names
from smdt.data.order import DataState, OrderConfig
from smdt.training.checkpoints.run_folder import write_json
from smdt.training.deepspeed.engine import Engine
from smdt.training.schedule import Length, Span

WEIGHTS = "weights.safetensors"
PROGRESS = "progress.json"
CONFIG = "config.yaml"
DEEPSPEED = "deepspeed.json"
ENVIRONMENT = "environment.json"
FILES = "files.json"
LATEST = "latest"
FORMAT = 1
"""Of a checkpoint; `progress.json` says it once it is another one."""
_NAME = re.compile(r"step-\d{8,}")

_log = logging.getLogger(__name__)


class CheckpointConfig(BaseModel):
    """When checkpoints are written and which are kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: Length = Span(1, "epoch")
    """Distance between two checkpoints; the end of the run always gets one."""
    keep_last: int = Field(2, gt=0)
    """Number of newest checkpoints to keep."""


@dataclass(frozen=True)
class Progress:
    """Progress of a run at a checkpoint.

    Attributes:
        step: optimisation steps done.
        samples: samples consumed over all epochs.
        world_size: ranks that wrote the engines' states.
        zero_stage: DeepSpeed's, of these states.
        data: position in the data.
        best: score and step of the best evaluation so far, None before the first.
    """

    step: int
    samples: int
    world_size: int
    zero_stage: int
    data: DataState
    best: tuple[float, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the content of `progress.json`."""
        return {**asdict(self), "data": self.data.to_json()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Progress":
        """Return what `progress.json` says."""
        best = content["best"]
        return cls(
            step=content["step"],
            samples=content["samples"],
            world_size=content["world_size"],
            zero_stage=content["zero_stage"],
            data=DataState.from_json(content["data"]),
            best=None if best is None else (best[0], best[1]),
        )


def write(
    checkpoints: Path,
    engines: Mapping[str, Engine],
    progress: Progress,
    records: Mapping[str, str],
) -> None:
    """Write a checkpoint under a name that no reader takes; every rank calls it.

    Args:
        checkpoints: where those of the run are.
        engines: whose states are saved.
        progress: how far the run is.
        records: contents of further files by their names, such as the configuration.
    """
    unpublished = _unpublished(folder_of(checkpoints, progress.step))
    first = dist.get_rank() == 0
    if first:
        shutil.rmtree(unpublished, ignore_errors=True)
        unpublished.mkdir(parents=True)
    dist.barrier()
    weights: dict[str, Tensor] = {}
    for name, engine in engines.items():
        engine.save(unpublished)
        weights |= {f"{name}.{key}": tensor for key, tensor in engine.full_weights().items()}
    if first:
        save_file(weights, unpublished / WEIGHTS)
        write_json(unpublished / PROGRESS, progress.to_json())
        for name, content in records.items():
            write_atomic(unpublished / name, content.encode())
    dist.barrier()


def publish_step(checkpoints: Path, step: int) -> int:
    """Publish what all ranks have written after `step` steps; one process calls it.

    Returns:
        Its size in bytes.
    """
    final = folder_of(checkpoints, step)
    size = publish(_unpublished(final), final)
    update_latest(checkpoints, final)
    return size


def update_latest(checkpoints: Path, folder: Path) -> None:
    """Let the file `latest` name a published checkpoint; one that does is not written again.

    So a run resumes from its newest checkpoint also when the disk is full.
    """
    latest, name = checkpoints / LATEST, f"{folder.name}\n".encode()
    if not latest.is_file() or latest.read_bytes() != name:
        write_atomic(latest, name)


def _unpublished(final: Path) -> Path:
    return final.with_name(final.name + ".tmp")


def publish(unpublished: Path, final: Path) -> int:
    """Publish a folder with the list of its files, all of it on disk.

    Returns:
        Its size in bytes.
    """
    size = _seal(unpublished)
    if final.exists():
        shutil.rmtree(final)
    unpublished.rename(final)
    sync_folder(final.parent)
    return size


def _seal(folder: Path) -> int:
    """List every file with size and hash in `files.json`, all of it on disk; return the bytes."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = _fingerprint(path)
    write_json(folder / FILES, files)
    return sum(entry["size"] for entry in files.values())


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def integrity_error(folder: Path, *, hashes: bool = True) -> str:
    """Return what is wrong with a published checkpoint in one phrase, empty if it is intact.

    Args:
        folder: the checkpoint.
        hashes: whether the files are read and hashed; else only their sizes are compared.
    """
    try:
        files = json.loads((folder / FILES).read_bytes())
    except (OSError, ValueError):
        return f"{FILES} is missing or unreadable"
    if not isinstance(files, dict) or not files:
        return f"{FILES} lists no files"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if not isinstance(expected, dict) or path.stat().st_size != expected.get("size"):
            return f"{name} does not match its size"
        try:
            if hashes and _fingerprint(path) != expected:
                return f"{name} does not match its hash"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return ""


def folder_of(checkpoints: Path, step: int) -> Path:
    """Return the path of the checkpoint after `step` steps."""
    return checkpoints / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """Return after how many steps the checkpoint `folder` was written."""
    return int(folder.name.removeprefix("step-"))


def named_step(folder: Path) -> int | None:
    """Return the step that a folder is named by, as those of a run are; None if by none."""
    return step_of(folder) if _NAME.fullmatch(folder.name) else None


def published(checkpoints: Path) -> list[Path]:
    """Return the published checkpoints, newest first.

    Raises:
        InputError: the folder can't be read: a new run must not start over checkpoints.
    """
    folders = [checkpoints / name for name in names(checkpoints) if _NAME.fullmatch(name)]
    return sorted(folders, key=step_of, reverse=True)


def latest_valid(checkpoints: Path) -> Path | None:
    """Return the newest checkpoint that matches its list, with a warning for each that does not.

    None if nothing was published yet.

    Raises:
        UserError: there are checkpoints, and none is whole.
    """
    found = published(checkpoints)
    for folder in found:
        fault = integrity_error(folder)
        if not fault:
            return folder
        _log.warning("checkpoint %s is damaged (%s); trying the one before", folder, fault)
    if found:
        raise UserError(
            f"{checkpoints}: none of the {len(found)} checkpoints is intact; restore one from "
            "a copy, or set run.out to another folder"
        )
    return None


def load_progress(folder: Path) -> Progress:
    """Return how far the run was that wrote the checkpoint `folder`.

    What an older version did not write of the data's state is what its configuration says.

    Raises:
        InputError: another version of smdt wrote it.
    """
    try:
        content = json.loads((folder / PROGRESS).read_text())
        if content.get("format", FORMAT) > FORMAT:
            raise InputError(
                f"{folder / PROGRESS} has format {content['format']}, and this version reads "
                f"{FORMAT}: update smdt"
            )
        progress = Progress.from_json(content)
        known = progress.data.order is not None or not (folder / CONFIG).is_file()
        return progress if known else replace(progress, data=_completed(progress.data, folder))
    except KeyError as missing:
        raise InputError(
            f"{folder / PROGRESS} does not say {missing}: another version of smdt wrote it; "
            "resume with that one, or start a new run"
        ) from missing


def _completed(state: DataState, folder: Path) -> DataState:
    """Return a state with the batch size and the order of the checkpoint's configuration."""
    config = yaml.safe_load((folder / CONFIG).read_text())
    order = OrderConfig.model_validate(config["data"].get("order", {}))
    return state.completed(int(config["batch"]["global"]), order)


def load_engines(states: Path, engines: Mapping[str, Engine], weights: Path | None) -> None:
    """Restore every engine; every rank calls it.

    Args:
        states: a checkpoint, or its universal form.
        engines: fresh ones, made for one or the other.
        weights: for the universal form, which lacks buffers, those of the checkpoint.
    """
    for name, engine in engines.items():
        engine.load(states)
        if weights is not None:
            with safe_open(weights, framework="pt") as file:
                engine.restore_buffers(
                    {key: file.get_tensor(f"{name}.{key}") for key in engine.buffers()}
                )
