"""`smdt locate` and `smdt export`: what to do with a trained model."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from data_shards.console import write_json
from data_shards.terminal import Terminal
from smdt.checkpoints import JsonOption, Trained


def locate(
    photo: Annotated[Path, typer.Argument(help="An image file.")],
    gallery: Annotated[Path, typer.Option(help="Folder that `smdt embed` made.")],
    fov: Annotated[float, typer.Option(help="Degrees from its left to its right edge.")] = 360.0,
    heading: Annotated[
        float | None,
        typer.Option(
            help="Of its middle, degrees clockwise from north; by default it is searched."
        ),
    ] = None,
    lens: Annotated[
        str, typer.Option(help="panorama, or rectilinear: what cameras and phones take.")
    ] = "panorama",
    headings: Annotated[
        int, typer.Option(min=1, help="How many are tried where the heading is unknown.")
    ] = 72,
    top: Annotated[int, typer.Option(min=1, help="Places to show.")] = 5,
    checkpoint: Annotated[
        Path | None, typer.Option(help="What made the gallery, if it is elsewhere now.")
    ] = None,
    geojson_file: Annotated[
        Path | None, typer.Option("--geojson", help="Write the places as points of a map.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Say where a photo was taken: the places of a gallery that it is most like."""
    from smdt.inference.gallery import Gallery
    from smdt.inference.locate import Locator, Look, geojson, read_photo

    look = Look.of(fov, heading, lens, headings)
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
