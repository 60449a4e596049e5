"""Jobs on ranks: what every process of `smdt segment`, `align`, `embed` and `evaluate` runs.

`deepspeed --module smdt.inference.rank JOB --option value ...` starts the ranks of a job; its
options are the fields of the job, as `arguments` writes them.
"""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NoReturn

import torch
import torch.distributed as dist
import typer
from pydantic import TypeAdapter, ValidationError

from data_shards.base.errors import InputError, UserError, run
from data_shards.build.executor import AdvanceCallback, no_progress
from data_shards.console import progress_bar
from smdt.data.pipeline import require_dali
from smdt.data.split import Split
from smdt.inference.align import open_alignment
from smdt.inference.annotate import Annotation, annotate, begin, samples_left
from smdt.inference.annotated_shard import Annotator
from smdt.inference.embed import EmbedJob, embed, shards_left
from smdt.inference.embed import begin as begin_embedding
from smdt.inference.segment import open_segmentation
from smdt.stages.trained import EvaluationOverrides, evaluate_trained, load_config
from smdt.stages.weights import resolve_checkpoint
from smdt.training.deepspeed.engine import init_distributed
from smdt.training.loop.stage import Evaluation
from smdt.training.ranks.cpu import keep_freed_memory, set_thread_count
from smdt.training.ranks.environment import rank_and_world_size
from smdt.training.ranks.stopping import exit_with_parent

MODULE = "smdt.inference.rank"
"""What `deepspeed` starts on every rank."""
EVALUATION_TIMEOUT_SECONDS = 1800.0
"""Timeout of a collective: how long a rank waits for a slower one."""

ANNOTATORS: Mapping[str, Callable[[Path, torch.device], Annotator]] = {
    "segment": open_segmentation,
    "align": open_alignment,
}
"""What opens the model of a job."""

_EVALUATION = TypeAdapter(Evaluation)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class AnnotateJob(Annotation):
    """A data set to annotate with a trained model.

    Attributes:
        checkpoint: run, checkpoint, or Hugging Face folder.
    """

    checkpoint: Path = field(kw_only=True)


@dataclass(frozen=True)
class EvaluateJob:
    """Inputs and rules of an evaluation.

    Attributes:
        trained: run or checkpoint.
        shards: folder or URL of the data set.
        split: of the data set.
        max_missing: how many unreadable samples may be left out.
        panogan_compat: whether scores of images are the published ones.
        alignment: run or checkpoint that makes aligned images; None: where the run had it.
        protocol: of a retrieval; None: the run's.
        fov_deg: field of view of the panoramas; None: the run's.
        unknown_heading: whether each panorama is turned at random; None: as the run.
        found: file that rank 0 writes the evaluation to, as JSON.
    """

    trained: Path
    shards: str
    split: str
    max_missing: int = 0
    panogan_compat: bool = False
    alignment: Path | None = None
    protocol: str | None = None
    fov_deg: float | None = None
    unknown_heading: bool | None = None
    found: Path | None = None

    @property
    def asked(self) -> EvaluationOverrides:
        """The rules that are not the run's own."""
        return EvaluationOverrides(self.protocol, self.fov_deg, self.unknown_heading)

    def evaluate(self) -> Evaluation:
        """Evaluate, together with the other ranks where there are any.

        Raises:
            UserError: as `evaluate_trained`.
        """
        return evaluate_trained(
            self.trained,
            self.shards,
            self.split,
            self.max_missing,
            self.panogan_compat,
            self.alignment,
            self.asked,
        )


def begin_annotating(name: str, job: AnnotateJob) -> None:
    """Say once what is wrong with the input, before every rank finds it; begin the job.

    Raises:
        InputError: the model or the data set can't be used, or the output is another job's.
    """
    begin(job, ANNOTATORS[name](job.checkpoint, torch.device("cpu")))


def annotate_on_rank(name: str, job: AnnotateJob, rank: int, world_size: int) -> None:
    """Make the parts of this rank's shards, on its GPU if there is one."""
    device = _device_of_rank()
    annotator = ANNOTATORS[name](job.checkpoint, device)
    left = samples_left(job, begin(job, annotator), rank, world_size)
    with _progress(name, left, rank, world_size) as advance:
        annotate(job, annotator, device, rank, world_size, advance)


def embed_on_rank(job: EmbedJob, rank: int, world_size: int) -> None:
    """Embed this rank's shards, on its GPU if there is one."""
    device = _device_of_rank()
    split = begin_embedding(job)
    left = shards_left(job, split, rank, world_size)
    samples = sum(split.shards[shard].samples for shard in left)
    with _progress("embed", samples, rank, world_size) as advance:
        embed(job, device, rank, world_size, advance)


def evaluate_on_rank(job: EvaluateJob, rank: int, world_size: int) -> None:
    """Evaluate together with the other ranks; rank 0 writes the result to `job.found`."""
    del world_size  # the process group has it
    rank_and_world_size()
    set_thread_count()
    keep_freed_memory()
    init_distributed(EVALUATION_TIMEOUT_SECONDS)
    found = job.evaluate()
    if rank == 0 and job.found is not None:
        job.found.write_bytes(_EVALUATION.dump_json(found))
    dist.barrier()
    dist.destroy_process_group()


def evaluate_on_ranks(job: EvaluateJob, start: Callable[[Sequence[str]], None]) -> Evaluation:
    """Have ranks evaluate; return what they found together.

    Args:
        job: what to do.
        start: starts this module on the ranks, with arguments, and waits for their end.

    Raises:
        InputError: there is no such checkpoint or split, or DALI is not installed.
        UserError: a rank failed.
    """
    require_dali()
    config = job.asked.apply(load_config(resolve_checkpoint(job.trained), job.alignment))
    views = ("ground", "seg") if config.stage == "segmentation" else ("aerial",)
    Split.open(job.shards, job.split).require_shapes(views)
    with TemporaryDirectory(prefix="smdt-evaluate-") as folder:
        found = Path(folder) / "found.json"
        start(arguments("evaluate", replace(job, found=found)))
        if not found.exists():
            raise UserError(f"{job.trained} was not evaluated: its ranks say why, above.")
        return _EVALUATION.validate_json(found.read_bytes())


JOBS: Mapping[str, tuple[type[Any], Callable[[Any, int, int], None]]] = {
    "segment": (AnnotateJob, partial(annotate_on_rank, "segment")),
    "align": (AnnotateJob, partial(annotate_on_rank, "align")),
    "embed": (EmbedJob, embed_on_rank),
    "evaluate": (EvaluateJob, evaluate_on_rank),
}
"""By name, what describes a job and what a rank does of it."""


def arguments(name: str, job: AnnotateJob | EmbedJob | EvaluateJob) -> list[str]:
    """Return the command line of a job's ranks (pure)."""
    given = {each: value for each, value in asdict(job).items() if value is not None}
    return [name, *(f"{_option(each)}={value}" for each, value in given.items())]


def parse(words: Sequence[str]) -> tuple[str, Any]:
    """Return the name of a job and the job that `arguments` wrote (pure).

    Raises:
        InputError: there is no such job or option, or a value is missing or can't be used.
    """
    name, *rest = [*words] or [""]
    if name not in JOBS:
        raise InputError(f"{name!r} is not one of {', '.join(JOBS)}")
    job_type, _ = JOBS[name]
    parser = _Parser(prog=name, allow_abbrev=False, add_help=False)
    for each in fields(job_type):
        parser.add_argument(
            _option(each.name),
            dest=each.name,
            required=each.default is MISSING,
            default=argparse.SUPPRESS,
        )
    try:
        return name, TypeAdapter(job_type).validate_python(vars(parser.parse_args(rest)))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{_option(str(first['loc'][0]))}: {first['msg']}") from None


@app.command(context_settings={"ignore_unknown_options": True})
def main_rank(
    words: Annotated[list[str], typer.Argument(metavar="JOB --option value ...")],
) -> None:
    """Do this rank's part of a job; `deepspeed` starts one such process for each rank."""
    exit_with_parent()
    # DeepSpeed's launcher says it in the environment as well
    name, job = parse([word for word in words if not word.startswith("--local_rank")])
    _, do = JOBS[name]
    do(job, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _device_of_rank() -> torch.device:
    keep_freed_memory()
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _progress(
    name: str, samples: int, rank: int, world_size: int
) -> AbstractContextManager[AdvanceCallback]:
    """Rank 0 shows a bar, of its own part."""
    if rank != 0:
        return nullcontext(no_progress)
    return progress_bar(name if world_size == 1 else f"{name}, rank 0 of {world_size}", samples)


def main() -> None:
    """Run `smdt.inference.rank` as a program."""
    run(app)


if __name__ == "__main__":
    main()
