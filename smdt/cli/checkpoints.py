"""`smdt checkpoint`: list the checkpoints of a run and verify them.

What imports torch is imported where it is used, as in every command.
"""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from data_shards.base.errors import InputError
from data_shards.base.names import printable
from data_shards.base.terminal import Terminal
from data_shards.console import write_json

app = typer.Typer(no_args_is_help=True)

Trained = Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")]


@dataclass(frozen=True)
class CheckpointInfo:
    """Metadata of a checkpoint.

    Attributes:
        path: its folder.
        saved: when it was published, UTC.
        step: optimisation steps done.
        epoch: of the last batch, from 0.
        ranks: that wrote it.
        zero_stage: with which they did.
        bytes: of all its files.
        best: whether it has the best score of its run so far.
    """

    path: str
    saved: str
    step: int
    epoch: int
    ranks: int
    zero_stage: int
    bytes: int
    best: bool


@app.command("list")
def list_checkpoints(trained: Trained, json_file: JsonOption = None) -> None:
    """Print what checkpoints there are, newest first; reads no weights."""
    folders = find_checkpoints(trained)
    found = [describe(folder) for folder in folders]
    table = Table("checkpoint", "saved (UTC)", "step", "epoch", "ranks", "ZeRO", "MB", "")
    for folder, each in zip(folders, found, strict=True):
        numbers = (each.step, each.epoch, each.ranks, each.zero_stage, f"{each.bytes / 1e6:.1f}")
        note = "best" if each.best else ""
        table.add_row(folder.name, each.saved, *(str(number) for number in numbers), note)
    Terminal().print(table)
    write_json(json_file, [asdict(each) for each in found])


@app.command()
def verify(trained: Trained, json_file: JsonOption = None) -> None:
    """Recompute every hash; exit 1 if a checkpoint is damaged, and say what of it."""
    from smdt.training.checkpoints import checkpoint

    faults = {
        str(folder): checkpoint.integrity_error(folder) for folder in find_checkpoints(trained)
    }
    for folder, fault in faults.items():
        print(printable(f"{folder}: {fault or 'whole'}"))
    write_json(json_file, faults)
    if any(faults.values()):
        raise typer.Exit(1)


def find_checkpoints(trained: Path) -> list[Path]:
    """Return the checkpoint that `trained` is, or those of the run that it is, newest first.

    Raises:
        InputError: it is neither.
    """
    from smdt.training.checkpoints import checkpoint
    from smdt.training.checkpoints.run_folder import RunFolder

    if any((trained / name).is_file() for name in (checkpoint.PROGRESS, checkpoint.FILES)):
        return [trained]
    found = checkpoint.published(RunFolder(trained).checkpoints)
    if not found:
        raise InputError(f"{trained}: neither a checkpoint nor a run that has one")
    return found


def describe(folder: Path) -> CheckpointInfo:
    """Read the metadata of a checkpoint.

    Raises:
        InputError: it says nothing that can be read.
    """
    from smdt.training.checkpoints import checkpoint

    listed = folder / checkpoint.FILES
    try:
        progress = checkpoint.load_progress(folder)
        size = sum(entry["size"] for entry in json.loads(listed.read_text()).values())
        saved = datetime.fromtimestamp(listed.stat().st_mtime, UTC)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"checkpoint {folder}: {checkpoint.PROGRESS} or {checkpoint.FILES} cannot be read; "
            "smdt checkpoint verify lists what is damaged"
        ) from error
    return CheckpointInfo(
        path=str(folder),
        saved=f"{saved:%Y-%m-%d %H:%M:%S}",
        step=progress.step,
        epoch=progress.data.epoch,
        ranks=progress.world_size,
        zero_stage=progress.zero_stage,
        bytes=size,
        best=progress.best is not None and progress.best[1] == progress.step,
    )
