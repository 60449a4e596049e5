"""One rank of `smdt embed`, as `deepspeed --module smdt.inference.embed_rank`."""

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated

import torch
import typer

from data_shards.console import progress_bar
from data_shards.errors import run
from data_shards.executor import Advance, no_progress
from smdt.inference.embed import EmbedJob, begin, embed, shards_left
from smdt.training.processor import keep_freed_memory
from smdt.training.stopping import die_with_parent

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def embed_on_rank(job: EmbedJob, rank: int, world_size: int) -> None:
    """Do this rank's shards, on its GPU if there is one."""
    keep_freed_memory()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    bar: AbstractContextManager[Advance] = nullcontext(no_progress)
    if rank == 0:
        split = begin(job)
        left = shards_left(job, split, rank, world_size)
        title = "embed" if world_size == 1 else f"embed, rank 0 of {world_size}"
        bar = progress_bar(title, sum(split.shards[shard].samples for shard in left))
    with bar as advance:
        embed(job, device, rank, world_size, advance)


def rank_arguments(job: EmbedJob) -> list[str]:
    """Return the command line of this module."""
    options = {
        "--shards": job.shards,
        "--split": job.split,
        "--out": job.out,
        "--batch": job.batch,
        "--max-missing": job.max_missing,
        "--turns": job.turns,
        **({} if job.alignment is None else {"--alignment": job.alignment}),
    }
    return [str(job.trained), *(str(word) for option in options.items() for word in option)]


@app.command()
def main_rank(
    trained: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT")],
    shards: Annotated[str, typer.Option(help="Folder or URL of the data set.")],
    split: Annotated[str, typer.Option(help="Whose aerial images are the gallery.")],
    out: Annotated[Path, typer.Option(help="Folder of the gallery.")],
    batch: Annotated[int, typer.Option(min=1)] = 32,
    max_missing: Annotated[int, typer.Option(min=0)] = 0,
    turns: Annotated[int, typer.Option(min=1)] = 1,
    alignment: Annotated[Path | None, typer.Option(help="What makes aligned images.")] = None,
    local_rank: Annotated[int | None, typer.Option("--local_rank", hidden=True)] = None,
) -> None:
    """Do the shards of this rank; `deepspeed` starts one such process for each rank."""
    del local_rank  # DeepSpeed's launcher says it in the environment as well
    die_with_parent()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    job = EmbedJob(trained, shards, split, out, batch, max_missing, alignment, turns)
    embed_on_rank(job, rank, world_size)


def main() -> None:
    """Run `smdt.inference.embed_rank` as a program."""
    run(app)


if __name__ == "__main__":
    main()
