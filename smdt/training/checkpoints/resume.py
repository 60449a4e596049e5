"""Finding the checkpoint to resume from, in a form that the ranks can load.

Decided before the ranks form a process group, by rank 0 alone: it reads the hashes of a checkpoint
and, where another number of ranks wrote it, converts it.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from data_shards.base.errors import InputError
from smdt.training.checkpoints import checkpoint, retention
from smdt.training.checkpoints.checkpoint import Progress
from smdt.training.checkpoints.run_folder import RunFolder
from smdt.training.deepspeed.engine import Engine
from smdt.training.deepspeed.universal import convert

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint that a run starts from, or none.

    Attributes:
        checkpoint: a whole one; None for a fresh start.
        states: what the engines load: the checkpoint, or its universal form.
        best_holds: whether scores are measured as the checkpoint's best one was.
    """

    checkpoint: Path | None = None
    states: Path | None = None
    best_holds: bool = True

    @property
    def universal(self) -> bool:
        """Whether the states are in the form for any number of ranks."""
        return self.states != self.checkpoint

    def to_json(self) -> str:
        """Say it in one line, to other ranks."""
        paths = (self.checkpoint, self.states)
        named = [None if path is None else str(path) for path in paths]
        return json.dumps([*named, self.best_holds])

    @classmethod
    def from_json(cls, text: str) -> "ResumePoint":
        """Return what `to_json` said."""
        *named, best_holds = json.loads(text)
        found, states = (None if path is None else Path(path) for path in named)
        return cls(found, states, best_holds)

    def progress(self, world_size: int) -> Progress:
        """Return the progress of a run that resumes from a checkpoint, on this number of ranks."""
        assert self.checkpoint is not None, "called for a run that resumes"
        saved = replace(checkpoint.load_progress(self.checkpoint), world_size=world_size)
        return saved if self.best_holds else replace(saved, best=None)

    def load(self, engines: Mapping[str, Engine]) -> None:
        """Restore fresh engines; every rank calls it."""
        if self.checkpoint is not None and self.states is not None:
            weights = self.checkpoint / checkpoint.WEIGHTS if self.universal else None
            checkpoint.load_engines(self.states, engines, weights)


def find_resume_point(
    folder: RunFolder,
    resume: str,
    zero_stage: int,
    world_size: int,
    examine: Callable[[Path], bool] = lambda found: True,  # noqa: ARG005
) -> ResumePoint:
    """Find the checkpoint to resume from, and convert it if needed; one process calls it.

    Args:
        folder: the run folder.
        resume: `auto`, `never`, or a checkpoint folder.
        zero_stage: of this run.
        world_size: its ranks.
        examine: refuses a checkpoint that the run cannot resume from, before it is converted;
            returns whether scores are measured as the checkpoint's best one was.

    Raises:
        UserError: there is none to load, or one that cannot be loaded or would be overwritten.
    """
    found = find_checkpoint(folder, resume)
    if found is None:
        return ResumePoint()
    progress = checkpoint.load_progress(found)
    check_zero_stage(found, progress, zero_stage)
    best_holds = examine(found)
    retention.prepare_resume(folder.checkpoints, found, progress.step)
    states = found
    if zero_stage != 0 and progress.world_size != world_size:
        states = convert_to_universal(found, zero_stage, folder.universal)
    return ResumePoint(found, states, best_holds)


def check_zero_stage(folder: Path, progress: Progress, zero_stage: int) -> None:
    """Check that a checkpoint was written with the ZeRO stage of this run.

    Raises:
        InputError: it was not.
    """
    if progress.zero_stage != zero_stage:
        raise InputError(
            f"checkpoint {folder} was written with ZeRO {progress.zero_stage} and the DeepSpeed "
            f"configuration asks for {zero_stage}, which DeepSpeed cannot convert: set "
            f"zero_optimization.stage to {progress.zero_stage}, or start a new run"
        )


def find_checkpoint(folder: RunFolder, resume: str) -> Path | None:
    """Return the checkpoint to resume from; None starts a new run.

    Raises:
        UserError: there is none to load, or one that would be overwritten.
    """
    if resume == "never":
        if checkpoint.published(folder.checkpoints):
            raise InputError(
                f"{folder.checkpoints} holds checkpoints of an earlier run, which --resume never "
                "would overwrite; set run.out to another folder or delete it"
            )
        return None
    if resume == "auto":
        return checkpoint.latest_valid(folder.checkpoints)
    found = Path(resume)
    fault = checkpoint.integrity_error(found)
    if fault:
        raise InputError(f"checkpoint {found}: {fault}; name another one for --resume")
    step = checkpoint.load_progress(found).step
    for newer in checkpoint.published(folder.checkpoints):
        if checkpoint.step_of(newer) > step and not checkpoint.integrity_error(newer):
            raise InputError(
                f"{newer} is newer than --resume {found}, so the next start would resume from it: "
                "omit --resume to do that now, delete what is newer, or set run.out to "
                "another folder"
            )
    return found


def convert_to_universal(folder: Path, zero_stage: int, kept: Path) -> Path:
    """Return the universal form of a checkpoint; it is made unless an intact one exists.

    It is made under another name and published by one rename, as checkpoints are.

    Args:
        folder: the checkpoint, whole.
        zero_stage: of the ranks that wrote it, 1 to 3.
        kept: where the run keeps its universal forms.
    """
    # The list of hashes tells checkpoints of one name apart.
    identity = hashlib.sha256((folder / checkpoint.FILES).read_bytes()).hexdigest()[:16]
    final = kept / f"{folder.name}-{identity}"
    if final.exists() and not checkpoint.integrity_error(final):
        return final
    delete_universal_forms(kept)
    unpublished = final.with_name(f"{final.name}.tmp")
    unpublished.mkdir(parents=True)
    for engine in (path for path in sorted(folder.iterdir()) if path.is_dir()):
        convert(engine, unpublished / engine.name, zero_stage)
    checkpoint.publish(unpublished, final)
    _log.info("%s was written by another number of ranks: converted into %s", folder, final)
    return final


def delete_universal_forms(kept: Path) -> None:
    """Delete them all: the run has a newer checkpoint."""
    shutil.rmtree(kept, ignore_errors=True)
