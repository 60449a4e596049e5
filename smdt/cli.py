"""The umbrella command `smdt`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from data_shards.build import stop_signals
from data_shards.cli import app as shards_app
from data_shards.console import show_build, write_json
from data_shards.errors import InputError, Stopped, run
from data_shards.terminal import Terminal
from launcher.cli import ConfigOption, DeepSpeedOption, JsonOption, Overrides, Resume
from launcher.cli import app as launch_app
from launcher.command import LocalPlan, check_gpus, devices_of
from launcher.local import run_local, run_ranks
from smdt.checkpoints import app as checkpoint_app
from smdt.use import export, locate

if TYPE_CHECKING:
    from smdt.inference.annotate import Annotation

AlignmentOption = Annotated[
    Path | None,
    typer.Option(
        "--alignment",
        help="Run or checkpoint that makes aligned images, if it is elsewhere now.",
    ),
]

app = typer.Typer(
    name="smdt",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(shards_app, name="shards", help="Build, verify and describe shards.")
app.add_typer(launch_app, name="launch", help="Run on many machines, and keep the run alive.")
app.command()(locate)
app.command()(export)
app.add_typer(checkpoint_app, name="checkpoint", help="List and verify the checkpoints of a run.")


def show_version(asked: bool) -> None:
    """Print the version of the installed package and end, if it was asked for."""
    if asked:
        from importlib.metadata import version

        print(f"smdt {version('smdt')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Cross-view geo-localization: shards, training, evaluation, use."""


@app.command()
def train(
    config: ConfigOption,
    overrides: Overrides = None,
    deepspeed_config: DeepSpeedOption = None,
    ranks: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    resume: Resume = "auto",
) -> None:
    """Train one stage on this machine through DeepSpeed's launcher."""
    from launcher.job import open_job
    from smdt.training.processor import emulates_bf16

    job = open_job(config, deepspeed_config, resume, overrides or [], ranks, ranks)
    job.check()
    for line in job.examine_checkpoint():
        typer.echo(line, err=True)
    plan = local_plan("smdt.train", job.arguments(), ranks)
    if job.config.precision == "bf16" and not plan.has_gpu and emulates_bf16():
        typer.echo("precision: bf16 is many times slower than fp32 on this CPU", err=True)
    run_local(plan, job.folder)


@app.command()
def segment(
    shards: Annotated[str, typer.Option(help="Folder or URL of the data set.")],
    out: Annotated[str, typer.Option(help="Folder or URL of the new data set.")],
    checkpoint: Annotated[Path, typer.Option(help="Run, checkpoint, or Hugging Face folder.")],
    ranks: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Panoramas that a process sees at once.")] = 16,
    max_missing: Annotated[int, typer.Option(min=0, help="Unreadable samples to leave out.")] = 0,
    json_file: JsonOption = None,
) -> None:
    """Make the class maps of a data set: shards in, the same with seg.png out."""
    from smdt.inference.annotate import Annotation

    annotated("segment", Annotation(shards, out, batch, max_missing), checkpoint, ranks, json_file)


@app.command()
def align(
    shards: Annotated[str, typer.Option(help="Folder or URL of the data set.")],
    out: Annotated[str, typer.Option(help="Folder or URL of the new data set.")],
    checkpoint: Annotated[Path, typer.Option(help="Run or checkpoint of the alignment stage.")],
    ranks: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Tiles that a process reads at once.")] = 16,
    max_missing: Annotated[int, typer.Option(min=0, help="Unreadable samples to leave out.")] = 0,
    json_file: JsonOption = None,
) -> None:
    """Turn aerial images into ground images: shards in, the same with aligned.jpg out."""
    from smdt.inference.annotate import Annotation

    annotated("align", Annotation(shards, out, batch, max_missing), checkpoint, ranks, json_file)


@app.command()
def evaluate(
    trained: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT")],
    shards: Annotated[str, typer.Option(help="Folder or URL of the data set.")],
    split: Annotated[
        str | None, typer.Option(help="Split of the data set; by default the protocol's.")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="pairs, cvusa, cvact_val, cvact_test, vigor_same, vigor_cross; by default the "
            "data set's."
        ),
    ] = None,
    fov: Annotated[
        float | None, typer.Option(help="Degrees of the panoramas that are left; else the run's.")
    ] = None,
    unknown_heading: Annotated[
        bool | None,
        typer.Option(
            "--unknown-heading/--known-heading",
            help="Turn each panorama by an unknown heading; by default as the run.",
        ),
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    max_missing: Annotated[int, typer.Option(help="Unreadable samples to tolerate.")] = 0,
    panogan_compat: Annotated[
        bool, typer.Option("--panogan-compat", help="SSIM, PSNR and SD as papers publish them.")
    ] = False,
    alignment: AlignmentOption = None,
    references_file: Annotated[
        Path | None,
        typer.Option("--references", help="Measure what the scores are worth; write it here."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Scores of a trained model on a split, such as the recall of retrieval."""
    from smdt.evaluation.score import score_text
    from smdt.inference.evaluate_rank import EvaluateJob, evaluate_on_ranks
    from smdt.stages.references import references
    from smdt.stages.trained import Asked, load_config
    from smdt.stages.weights import find_weights

    asked = Asked(protocol, fov, unknown_heading)
    split = split or asked.split(shards)
    job = EvaluateJob(
        trained=trained,
        shards=shards,
        split=split,
        max_missing=max_missing,
        panogan_compat=panogan_compat,
        alignment=alignment,
        asked=asked,
    )
    if ranks == 1:
        evaluation = job.evaluate()
    else:
        module = "smdt.inference.evaluate_rank"
        evaluation = evaluate_on_ranks(
            job, lambda arguments: run_ranks(local_plan(module, arguments, ranks))
        )
    rows = {evaluation.protocol: dict(evaluation.scores)}
    if references_file is not None:
        config = asked.apply(load_config(find_weights(trained), alignment))
        compared = references(config, shards, split)
        write_json(references_file, compared)
        rows |= compared
    table = Table("", *evaluation.scores, title=f"{trained} on {shards}")
    for name, scores in rows.items():
        known = (score_text(k, scores[k]) if k in scores else "" for k in evaluation.scores)
        table.add_row(name, *known)
    Terminal().print(table)
    if repeated := evaluation.details.get("repeated"):
        Terminal().print(
            f"{repeated} aerial images are in the gallery already: it has "
            f"{evaluation.details['gallery_size']} entries."
        )
    if json_file is not None:
        write_json(json_file, {"scores": dict(evaluation.scores), **evaluation.details})


@app.command()
def embed(
    trained: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT")],
    shards: Annotated[str, typer.Option(help="Folder or URL of the data set.")],
    out: Annotated[Path, typer.Option(help="Folder of the gallery.")],
    split: Annotated[
        str | None, typer.Option(help="Whose aerial images; by default those that are evaluated.")
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images that a process sees at once.")] = 32,
    max_missing: Annotated[int, typer.Option(min=0, help="Unreadable samples to leave out.")] = 0,
    turns: Annotated[
        int, typer.Option(min=1, help="At which each image is embedded; 12 finds photos better.")
    ] = 1,
    alignment: AlignmentOption = None,
    json_file: JsonOption = None,
) -> None:
    """Make a gallery of a split's aerial images: their descriptors and their places."""
    from smdt.inference.embed import EmbedJob, default_split, finish, prepare
    from smdt.inference.embed_rank import embed_on_rank, rank_arguments

    split = split or default_split(shards)
    job = EmbedJob(trained, shards, split, out, batch, max_missing, alignment, turns)
    try:
        with stop_signals():
            if ranks == 1:
                prepare(job)
                embed_on_rank(job, 0, 1)
            else:
                plan = local_plan("smdt.inference.embed_rank", rank_arguments(job), ranks)
                prepare(job)
                run_ranks(plan)
            gallery = finish(job)
    except KeyboardInterrupt:
        raise Stopped(
            f"Stopped; finished shards stay in {out}: start the same command again to go on."
        ) from None
    items, width = gallery.descriptors.shape
    said = f"{out}: {items} places of split {job.split} of {shards}, {width} numbers each"
    Terminal().print(said, soft_wrap=True)
    write_json(json_file, {"gallery": str(out), "places": items, "width": width})


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="RUN")]) -> None:
    """Write report.html of a run: one page that needs nothing else."""
    from smdt.report.page import write_report

    print(write_report(folder))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of everything the demo makes.")] = Path("demo"),
    quick: Annotated[bool, typer.Option(help="A smaller world and a weaker model.")] = False,
    full: Annotated[bool, typer.Option(help="Go on with the stages of the paper.")] = False,
) -> None:
    """From a synthetic world to a recall on an unseen city, with the commands of the README."""
    from smdt.demo import run_demo

    run_demo(out, quick=quick, full=full)


@app.command()
def configs(
    name: Annotated[str | None, typer.Argument(help="What to print or copy.")] = None,
    out: Annotated[Path | None, typer.Option(help="Copy it here.")] = None,
) -> None:
    """List the packaged configurations; print one, or copy one to edit it."""
    from smdt.config_file import copy_packaged, not_packaged, packaged

    files = packaged()
    if name is not None and out is not None:
        copy_packaged(name, out)
    elif name in files:
        print(files[name].read_text(encoding="utf-8"), end="")
    elif name is not None:
        raise InputError(f"{name}: {not_packaged(name)}")
    elif out is not None:
        raise InputError("--out needs a name: `smdt configs` lists them")
    else:
        for option, suffix in (("--config", ".yaml"), ("--deepspeed_config", ".json")):
            named = [name for name, file in files.items() if file.suffix == suffix]
            print(f"for {option}:", *named, sep="\n    ")
        print("to copy with --out:", "monitoring", sep="\n    ")


@app.command()
def doctor(json_file: JsonOption = None) -> None:
    """Say what is installed, what is missing, and what to do."""
    from smdt.doctor import examine

    examine(json_file)


def annotated(
    command: str, job: "Annotation", checkpoint: Path, ranks: int, json_file: Path | None
) -> None:
    """Make a data set of another one with a model, on some ranks, and show what it holds."""
    from smdt.inference.annotate import finish
    from smdt.inference.rank import annotate_rank, check, rank_arguments

    try:
        with stop_signals():
            if ranks == 1:
                annotate_rank(command, job, checkpoint, 0, 1)
            else:
                arguments = rank_arguments(command, job, checkpoint)
                plan = local_plan("smdt.inference.rank", arguments, ranks)
                check(command, job, checkpoint)
                run_ranks(plan)
            manifest = finish(job)
    except KeyboardInterrupt:
        raise Stopped(
            f"Stopped; finished shards stay in {job.out}: start the same command again to go on."
        ) from None
    show_build(manifest, job.out)
    write_json(json_file, manifest.model_dump(mode="json"))


def local_plan(module: str, arguments: Sequence[str], ranks: int) -> LocalPlan:
    """Return the plan of a module on this machine, as it is now.

    Raises:
        InputError: there are GPUs, but fewer than ranks; or DeepSpeed is not installed.
    """
    import torch

    from smdt.training.engine import require_deepspeed
    from smdt.training.place import free_port

    require_deepspeed()
    check_gpus(ranks, torch.cuda.device_count())
    has_gpu = torch.cuda.is_available()
    return LocalPlan(
        module=module,
        arguments=arguments,
        devices=devices_of(ranks, has_gpu, os.environ.get("CUDA_VISIBLE_DEVICES")),
        port=free_port(),
        cores=len(os.sched_getaffinity(0)),
        has_gpu=has_gpu,
    )


def main() -> None:
    """Run `smdt` as a program."""
    run(app)


if __name__ == "__main__":
    main()
