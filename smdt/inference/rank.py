"""One rank of `smdt segment` or `smdt align`, as `deepspeed --module smdt.inference.rank`."""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated

import torch
import typer

from data_shards.console import progress_bar
from data_shards.errors import InputError, run
from data_shards.executor import Advance, no_progress
from smdt.inference.align import open_alignment
from smdt.inference.annotate import Annotation, annotate, begin, samples_left
from smdt.inference.annotated_shard import Annotator
from smdt.inference.segment import open_segmentation
from smdt.training.processor import keep_freed_memory
from smdt.training.stopping import die_with_parent

ANNOTATORS: Mapping[str, Callable[[Path, torch.device], Annotator]] = {
    "segment": open_segmentation,
    "align": open_alignment,
}
"""What opens the model of a command."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def check(command: str, job: Annotation, trained: Path) -> None:
    """Say once what is wrong with the input, before every rank finds it; begin the job.

    Raises:
        InputError: the model or the data set can't be used, or the output is another job's.
    """
    begin(job, ANNOTATORS[command](trained, torch.device("cpu")))


def annotate_rank(command: str, job: Annotation, trained: Path, rank: int, world_size: int) -> None:
    """Do this rank's shards, on its GPU if there is one."""
    keep_freed_memory()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    annotator = ANNOTATORS[command](trained, device)
    left = samples_left(job, begin(job, annotator), rank, world_size)
    bar: AbstractContextManager[Advance] = nullcontext(no_progress)
    if rank == 0:
        title = command if world_size == 1 else f"{command}, rank 0 of {world_size}"
        bar = progress_bar(title, left)
    with bar as advance:
        annotate(job, annotator, device, rank, world_size, advance)


def rank_arguments(command: str, job: Annotation, trained: Path) -> list[str]:
    """Return the command line of this module."""
    options = {
        "--shards": job.source,
        "--out": job.out,
        "--checkpoint": trained,
        "--batch": job.batch,
        "--max-missing": job.max_missing,
    }
    return [command, *(str(word) for option in options.items() for word in option)]


@app.command()
def main_rank(
    command: Annotated[str, typer.Argument(help="segment or align")],
    shards: Annotated[str, typer.Option(help="Folder or URL of the data set.")],
    out: Annotated[str, typer.Option(help="Of the new data set.")],
    checkpoint: Annotated[Path, typer.Option(help="Run, checkpoint, or Hugging Face folder.")],
    batch: Annotated[int, typer.Option(min=1)] = 16,
    max_missing: Annotated[int, typer.Option(min=0)] = 0,
    local_rank: Annotated[int | None, typer.Option("--local_rank", hidden=True)] = None,
) -> None:
    """Do the shards of this rank; `deepspeed` starts one such process for each rank."""
    del local_rank  # DeepSpeed's launcher says it in the environment as well
    if command not in ANNOTATORS:
        raise InputError(f"{command!r} is none of {', '.join(ANNOTATORS)}")
    die_with_parent()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    annotate_rank(
        command, Annotation(shards, out, batch, max_missing), checkpoint, rank, world_size
    )


def main() -> None:
    """Run `smdt.inference.rank` as a program."""
    run(app)


if __name__ == "__main__":
    main()
