"""What to do with a trained model: `smdt segment`, `align`, `embed`, `locate` and `export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from data_shards.base.terminal import Terminal
from data_shards.console import show_build, write_json
from smdt.cli.checkpoints import JsonOption, Trained
from smdt.cli.ranks import kept_when_stopped, run_job

if TYPE_CHECKING:
    from smdt.inference.rank import AnnotateJob

AlignmentOption = Annotated[
    Path | None,
    typer.Option(
        "--alignment",
        help="Run or checkpoint that makes aligned images, if it is elsewhere now.",
    ),
]


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
    from smdt.inference.rank import AnnotateJob

    job = AnnotateJob(shards, out, batch, max_missing, checkpoint=checkpoint)
    annotate("segment", job, ranks, json_file)


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
    from smdt.inference.rank import AnnotateJob

    job = AnnotateJob(shards, out, batch, max_missing, checkpoint=checkpoint)
    annotate("align", job, ranks, json_file)


def embed(
    trained: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT")],
    shards: Annotated[str, typer.Option(help="Folder or URL of the data set.")],
    out: Annotated[Path, typer.Option(help="Folder of the gallery.")],
    split: Annotated[
        str | None, typer.Option(help="Split of the aerial images; by default the evaluated one.")
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images that a process sees at once.")] = 32,
    max_missing: Annotated[int, typer.Option(min=0, help="Unreadable samples to leave out.")] = 0,
    turns: Annotated[
        int,
        typer.Option(
            min=1,
            help="Number of headings at which each image is embedded; 12 finds photos better.",
        ),
    ] = 1,
    alignment: AlignmentOption = None,
    json_file: JsonOption = None,
) -> None:
    """Make a gallery of a split's aerial images: their descriptors and their places."""
    from smdt.inference.embed import EmbedJob, default_split, finish, prepare

    split = split or default_split(shards)
    job = EmbedJob(trained, shards, split, out, batch, max_missing, alignment, turns)
    with kept_when_stopped(out):
        if ranks == 1:
            prepare(job)
        run_job("embed", job, ranks, lambda: prepare(job))
        gallery = finish(job)
    items, width = gallery.descriptors.shape
    said = f"{out}: {items} places of split {job.split} of {shards}, {width} numbers each"
    Terminal().print(said, soft_wrap=True)
    write_json(json_file, {"gallery": str(out), "places": items, "width": width})


def locate(
    photo: Annotated[Path, typer.Argument(help="An image file.")],
    gallery: Annotated[Path, typer.Option(help="Folder that `smdt embed` made.")],
    fov: Annotated[float, typer.Option(help="Degrees from its left to its right edge.")] = 360.0,
    heading: Annotated[
        float | None,
        typer.Option(
            help="Heading of its middle, degrees clockwise from north; by default it is searched."
        ),
    ] = None,
    lens: Annotated[
        str, typer.Option(help="panorama, or rectilinear: what cameras and phones take.")
    ] = "panorama",
    headings: Annotated[
        int,
        typer.Option(min=1, help="Number of headings that are tried if the heading is unknown."),
    ] = 72,
    top: Annotated[int, typer.Option(min=1, help="Places to show.")] = 5,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Run or checkpoint that made the gallery, if it was moved.")
    ] = None,
    geojson_file: Annotated[
        Path | None, typer.Option("--geojson", help="Write the places as points of a map.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Say where a photo was taken: the places of a gallery that it is most like."""
    from smdt.inference.gallery import Gallery
    from smdt.inference.locate import Locator, PhotoQuery, geojson, read_photo

    look = PhotoQuery.of(fov, heading, lens, headings)
    image = read_photo(photo)
    opened = Gallery.open(gallery)
    locator = Locator(opened, checkpoint)
    if look.fov_deg < locator.narrowest_deg:
        typer.echo(
            f"The towers were trained on fields of view from {locator.narrowest_deg:g} degrees: "
            f"expect little of {look.fov_deg:g}, or train with augment.fov_deg.",
            err=True,
        )
    found = locator(image, look, top)
    table = Table("")
    table.add_column("place", overflow="fold")
    for name in ("latitude", "longitude", "score", "heading"):
        table.add_column(name)
    rows = []
    for rank, each in enumerate(found, start=1):
        place = opened.place(each.item)
        rows.append({"rank": rank, "score": each.score, "heading_deg": each.heading_deg, **place})
        texts = [
            "" if value is None else f"{value:.{digits}f}"
            for value, digits in (
                (place["lat"], 6),
                (place["lon"], 6),
                (each.score, 3),
                (each.heading_deg, 0),
            )
        ]
        table.add_row(str(rank), place["source_id"], *texts)
    terminal = Terminal()
    terminal.print(f"{photo}", soft_wrap=True)  # a title would be folded to the table's width
    terminal.print(table)
    write_json(geojson_file, geojson(found, opened))
    write_json(json_file, {"photo": str(photo), "fov_deg": fov, "places": rows})


def export(
    trained: Trained,
    out: Annotated[Path, typer.Option(help="A new folder.")],
) -> None:
    """Write what is needed to use a trained model and no more: weights, configuration, card."""
    from smdt.inference.export import export_model

    print(export_model(trained, out))


def annotate(name: str, job: "AnnotateJob", ranks: int, json_file: Path | None) -> None:
    """Make a data set of another one with a model, on some ranks, and show what it holds."""
    from smdt.inference.annotate import finish
    from smdt.inference.rank import begin_annotating

    with kept_when_stopped(job.out):
        run_job(name, job, ranks, lambda: begin_annotating(name, job))
        manifest = finish(job)
    show_build(manifest, job.out)
    write_json(json_file, manifest.model_dump(mode="json"))
