"""`smdt shards`: build, verify and describe data sets."""

import json
import re
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from data_shards.errors import InputError
from data_shards.plan import BuildOptions
from data_shards.sources.source import JSON, Source

app = typer.Typer(
    name="shards",
    help="Build, verify and describe data sets of tar shards.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Layout(StrEnum):
    """Raw data that `build` reads."""

    CVUSA = "cvusa"
    CVACT = "cvact"
    VIGOR = "vigor"
    FOLDER = "folder"


Out = Annotated[Path, typer.Option(help="Folder of the data set; an unfinished build goes on.")]
DataSet = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the data set.")]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the table as JSON.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one a core")]


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
    ground_size: Annotated[str, typer.Option(metavar="HxW", help="Of the panoramas.")] = "128x512",
    aerial_size: Annotated[int, typer.Option(help="Side of the tiles, pixels.")] = 256,
    workers: Workers = None,
    json_file: Json = None,
) -> None:
    """Make a synthetic world and build shards of it."""
    from data_shards.world.source import WorldSource

    try:
        source = WorldSource(seed, train, val, difficulty, parse_size(ground_size), aerial_size)
    except ValueError as error:
        raise InputError(str(error)) from None
    options = BuildOptions(samples_per_shard=WORLD_SAMPLES_PER_SHARD)
    _build(source, out, options, workers, None, json_file)


@app.command()
def build(
    layout: Annotated[Layout, typer.Argument(help="Layout of the raw data.")],
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
        Literal["area", "lanczos"], typer.Option(help="What resizes images: sharper or faster.")
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
    json_file: Json = None,
) -> None:
    """Build shards from raw data, or go on with a build that was interrupted."""
    options = BuildOptions(
        samples_per_shard=samples_per_shard,
        ground_size=None if ground_size is None else parse_size(ground_size),
        aerial_size=aerial_size,
        quality=quality,
        filter=filter,
        chroma=chroma,
        seed=seed,
    )
    _build(_source(layout, root, exclude, area), out, options, workers, max_rejected, json_file)


@app.command()
def finalize(root: DataSet, json_file: Json = None) -> None:
    """Merge the indexes of finished shards and write the manifest."""
    from data_shards.console import show_build
    from data_shards.finalize import finalize as finalize_data_set

    manifest = finalize_data_set(root)
    show_build(manifest, str(root))
    _write_json(json_file, manifest.model_dump(mode="json"))


@app.command()
def verify(root: DataSet, workers: Workers = None, json_file: Json = None) -> None:
    """Recompute every checksum, index and count; exit 1 and name what is damaged."""
    from data_shards.console import progress_bar, show_verification
    from data_shards.manifest import load
    from data_shards.verify import verify as verify_data_set

    samples = sum(split.samples for split in load(root).splits.values())
    with progress_bar("verify", samples) as advance:
        result = verify_data_set(root, workers=workers, progress=advance)
    show_verification(result)
    damages: JSON = [damage._asdict() for damage in result.damages]
    _write_json(json_file, asdict(result) | {"damages": damages})
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
    from data_shards.console import show_stats
    from data_shards.sheet import contact_sheet
    from data_shards.stats import stats as count

    splits = count(root)
    show_stats(splits, str(root))
    _write_json(json_file, {name: split.model_dump(mode="json") for name, split in splits.items()})
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


def _build(
    source: Source,
    out: Path,
    options: BuildOptions,
    workers: int | None,
    max_rejected: int | None,
    json_file: Path | None,
) -> None:
    from data_shards.build import build as build_data_set
    from data_shards.console import progress_bar, show_build

    rows = sum(split.rows for split in source.splits.values())
    with progress_bar(f"build {source.name}", rows) as advance:
        manifest = build_data_set(
            source, out, options, workers=workers, max_rejected=max_rejected, progress=advance
        )
    show_build(manifest, str(out))
    _write_json(json_file, manifest.model_dump(mode="json"))


def _source(
    layout: Layout, root: Path, exclude: Path | None, area: Literal["same", "cross"] | None
) -> Source:
    if area is not None and layout is not Layout.VIGOR:
        raise InputError(f"--area is for vigor: {layout.value} has no areas.")
    if exclude is not None and layout is Layout.FOLDER:
        raise InputError("--exclude is not for folder: leave the rows out of its tables instead.")
    match layout:
        case Layout.CVUSA:
            from data_shards.sources.cvusa import CvusaSource

            return CvusaSource(root, exclude)
        case Layout.CVACT:
            from data_shards.sources.cvact import CvactSource

            return CvactSource(root, exclude)
        case Layout.VIGOR:
            from data_shards.sources.vigor import VigorSource

            return VigorSource(root, area or "same", exclude)
        case Layout.FOLDER:
            from data_shards.sources.folder import FolderSource

            return FolderSource(root)


def _write_json(path: Path | None, value: JSON) -> None:
    if path is None:
        return
    try:
        path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror}.") from None
