"""The command `smdt`: its groups of commands, and those that are too small for a file."""

from pathlib import Path
from typing import Annotated

import typer

from data_shards.base.errors import InputError
from data_shards.cli import app as shards_app
from launcher.cli import app as launch_app
from smdt.cli import checkpoints, evaluation, inference, training
from smdt.cli.checkpoints import JsonOption

app = typer.Typer(
    name="smdt",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(shards_app, name="shards", help="Build, verify and describe shards.")
app.add_typer(launch_app, name="launch", help="Run on many machines, and keep the run alive.")
app.add_typer(checkpoints.app, name="checkpoint", help="List and verify the checkpoints of a run.")
for command in (
    training.train,
    training.report,
    evaluation.evaluate,
    inference.segment,
    inference.align,
    inference.embed,
    inference.locate,
    inference.export,
):
    app.command()(command)


def show_version(asked: bool) -> None:
    """Print the version of the installed package and exit, for `--version`."""
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
def demo(
    out: Annotated[Path, typer.Option(help="Folder of everything the demo makes.")] = Path("demo"),
    quick: Annotated[bool, typer.Option(help="A smaller world and a weaker model.")] = False,
    full: Annotated[bool, typer.Option(help="Continue with the stages of the paper.")] = False,
) -> None:
    """From a synthetic world to a recall on an unseen city, with the commands of the README."""
    from smdt.cli.demo import run_demo

    run_demo(out, quick=quick, full=full)


@app.command()
def configs(
    name: Annotated[str | None, typer.Argument(help="File to print or copy.")] = None,
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
    from smdt.cli.doctor import run_doctor

    run_doctor(json_file)
