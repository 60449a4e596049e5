"""`smdt shards`: build, verify and describe data sets."""

import os
import re
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from data_shards.base.errors import InputError
from data_shards.base.store import location, require_local, same_location
from data_shards.build.job_array import parse_task
from data_shards.format.plan import BuildOptions
from data_shards.format.sample import JSON
from data_shards.sources.source import Source

app = typer.Typer(
    name="shards",
    help="Build, verify and describe data sets of tar shards.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class RawLayout(StrEnum):
    """Raw data that `build` reads."""

    CVUSA = "cvusa"
    CVACT = "cvact"
    VIGOR = "vigor"
    FOLDER = "folder"


Out = Annotated[
    str, typer.Option(help="Folder or URL of the data set; an unfinished build is resumed.")
]
DataSet = Annotated[str, typer.Argument(metavar="DIR", help="Folder or URL of the data set.")]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the table as JSON.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one a core")]


LOCAL_ADDRESS = "127.0.0.1"
WORLD_SAMPLES_PER_SHARD = 100
"""Few enough that every core has shards of a small world to make."""


@app.command()
def world(
    out: Out,
    train: Annotated[int, typer.Option(min=1, help="Pairs of the training cities.")],
    val: Annotated[int, typer.Option(min=1, help="Pairs of the unseen city.")],
    seed: Annotated[int, typer.Option(min=0, help="Another seed is another world.")] = 0,
    difficulty: Annotated[
        Literal["easy", "normal", "hard"], typer.Option(help="Gap between the views.")
    ] = "normal",
    ground_size: Annotated[
        str, typer.Option(metavar="HxW", help="Height and width of the panoramas, pixels.")
    ] = "128x512",
    aerial_size: Annotated[int, typer.Option(help="Side of the tiles, pixels.")] = 256,
    workers: Workers = None,
    json_file: Json = None,
) -> None:
    """Make a synthetic world and build shards of it."""
    from data_shards.job import BuildJob
    from data_shards.world.source import WorldSource

    try:
        source = WorldSource(seed, train, val, difficulty, parse_size(ground_size), aerial_size)
    except ValueError as error:
        raise InputError(str(error)) from None
    options = BuildOptions(samples_per_shard=WORLD_SAMPLES_PER_SHARD)
    BuildJob(workers=workers).run(source, out, options, json_file)


@app.command()
def build(
    layout: Annotated[RawLayout, typer.Argument(help="Layout of the raw data.")],
    root: Annotated[Path, typer.Option(help="Folder of the raw data.")],
    out: Out,
    samples_per_shard: Annotated[int, typer.Option(min=1, help="Source rows of a shard.")] = 1000,
    ground_size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help="Re-encode panoramas and class maps to this size.",
            show_default="original bytes",
        ),
    ] = None,
    aerial_size: Annotated[
        int | None,
        typer.Option(min=1, help="Re-encode tiles to this side.", show_default="original bytes"),
    ] = None,
    quality: Annotated[
        int, typer.Option(min=1, max=100, help="JPEG quality of re-encoded images.")
    ] = 90,
    filter: Annotated[
        Literal["area", "lanczos"],
        typer.Option(help="Filter that resizes images: sharper or faster."),
    ] = "lanczos",
    chroma: Annotated[
        Literal["4:2:0", "4:4:4"], typer.Option(help="Colour of re-encoded images: half or full.")
    ] = "4:2:0",
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="Deal rows to shards at random.", show_default="the source's order"
        ),
    ] = None,
    exclude: Annotated[
        Path | None, typer.Option(metavar="LIST", help="Ids or files to leave out, one a line.")
    ] = None,
    area: Annotated[
        Literal["same", "cross"] | None,
        typer.Option(help="VIGOR's protocol.", show_default="same"),
    ] = None,
    max_rejected: Annotated[
        int | None,
        typer.Option(min=0, help="More rejected samples are an error.", show_default="no limit"),
    ] = None,
    workers: Workers = None,
    executor: Annotated[
        Literal["local", "ray"], typer.Option(help="This machine, or a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Head of the Ray cluster.",
            show_default="the one that this machine is a node of",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="K/N|auto",
            help="Only the shards of task K (from 0) of N of a job array, without finalize; auto "
            "asks Slurm's or Kubernetes' variables.",
        ),
    ] = None,
    metrics_targets: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Serve metrics on a free port, with a Prometheus discovery entry in DIR.",
        ),
    ] = None,
    metrics_address: Annotated[
        str, typer.Option(help="Address to serve metrics on.")
    ] = LOCAL_ADDRESS,
    metrics_tls: Annotated[
        str | None,
        typer.Option(
            metavar="CERT,KEY[,CA]",
            help="Serve metrics over HTTPS with these PEM files; with CA to its clients alone.",
        ),
    ] = None,
    json_file: Json = None,
) -> None:
    """Build shards from raw data, or resume an interrupted build."""
    from data_shards.base.exporter import Endpoint, Tls
    from data_shards.job import BuildJob

    options = BuildOptions(
        samples_per_shard=samples_per_shard,
        ground_size=None if ground_size is None else parse_size(ground_size),
        aerial_size=aerial_size,
        quality=quality,
        filter=filter,
        chroma=chroma,
        seed=seed,
    )
    if address is not None and executor == "local":
        raise InputError("--address is for --executor ray.")
    if metrics_targets is None and (metrics_tls is not None or metrics_address != LOCAL_ADDRESS):
        raise InputError(
            "--metrics-address and --metrics-tls say how metrics are served: add --metrics-targets."
        )
    tls = None if metrics_tls is None else Tls.parse(metrics_tls)
    if tls is not None:
        tls.check()
    job = BuildJob(
        workers=workers,
        max_rejected=max_rejected,
        ray_address=address,
        on_ray=executor == "ray",
        task=None if task is None else parse_task(task, os.environ),
        metrics_targets=metrics_targets,
        metrics=Endpoint(0, metrics_address, tls),
    )
    require_local(root, "--root")
    if same_location(location(out), root):
        raise InputError(f"--out {out} is the folder of the raw data: name another folder.")
    job.run(_source(layout, root, exclude, area), out, options, json_file)


@app.command()
def finalize(root: DataSet, json_file: Json = None) -> None:
    """Merge the indexes of finished shards and write the manifest."""
    from data_shards.build.finalize import finalize as finalize_data_set
    from data_shards.console import show_build, write_json

    manifest = finalize_data_set(root)
    show_build(manifest, root)
    write_json(json_file, manifest.model_dump(mode="json"))


@app.command()
def verify(root: DataSet, workers: Workers = None, json_file: Json = None) -> None:
    """Recompute every checksum, index and count; exit 1 and name what is damaged."""
    from data_shards.console import progress_bar, show_verification, write_json
    from data_shards.format.manifest import load
    from data_shards.inspect.verify import verify as verify_data_set

    samples = sum(split.samples for split in load(root).splits.values())
    with progress_bar("verify", samples) as advance:
        result = verify_data_set(root, workers=workers, progress=advance)
    show_verification(result)
    damages: JSON = [damage._asdict() for damage in result.damages]
    write_json(json_file, asdict(result) | {"damages": damages})
    if result.damages:
        raise typer.Exit(1)


@app.command()
def stats(
    root: DataSet,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Also draw a contact sheet.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Print what is in a data set."""
    from data_shards.console import show_stats, write_json
    from data_shards.inspect.sheet import contact_sheet
    from data_shards.inspect.stats import stats as count

    splits = count(root)
    show_stats(splits, root)
    write_json(json_file, {name: split.model_dump(mode="json") for name, split in splits.items()})
    if sheet is not None:
        try:
            contact_sheet(root).save(sheet)
        except (OSError, ValueError) as error:
            raise InputError(f"The sheet {sheet} can't be written: {error}.") from None


def parse_size(text: str) -> tuple[int, int]:
    """`224x1232` -> (224, 1232): height, width.

    Raises:
        InputError: it is something else.
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise InputError(f"The size {text!r} is not HEIGHTxWIDTH, as 224x1232.")
    return int(match[1]), int(match[2])


def _source(
    layout: RawLayout, root: Path, exclude: Path | None, area: Literal["same", "cross"] | None
) -> Source:
    if area is not None and layout is not RawLayout.VIGOR:
        raise InputError(f"--area is for vigor: {layout.value} has no areas.")
    if exclude is not None and layout is RawLayout.FOLDER:
        raise InputError("--exclude is not for folder: leave the rows out of its tables instead.")
    match layout:
        case RawLayout.CVUSA:
            from data_shards.sources.cvusa import CvusaSource

            return CvusaSource(root, exclude)
        case RawLayout.CVACT:
            from data_shards.sources.cvact import CvactSource

            return CvactSource(root, exclude)
        case RawLayout.VIGOR:
            from data_shards.sources.vigor import VigorSource

            return VigorSource(root, area or "same", exclude)
        case RawLayout.FOLDER:
            from data_shards.sources.folder import FolderSource

            return FolderSource(root)
