"""How often `smdt locate` finds a photo of unknown heading, cut out of an unseen panorama.

python -m benchmarks.locate --gallery DIR --shards DIR [--split NAME] [--photos N] [--fov DEGREES]
                            [--json FILE]

The photos are of samples at even distances in the split, each cut around a random azimuth that the
locator does not get. The gallery is what `smdt embed` made of the same split.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.turns import machine
from smdt.cli.demo import unseen_photo
from smdt.data.split import Split
from smdt.inference.gallery import Gallery
from smdt.inference.locate import Locator, PhotoQuery

DEPTHS = (1, 5, 10)
NEAR_DEG = 15.0
"""A heading counts as correct up to this error."""


def main(
    gallery: Annotated[Path, typer.Option(help="Folder that `smdt embed` made.")],
    shards: Annotated[str, typer.Option(help="Folder of the data set.")],
    split: Annotated[str, typer.Option(help="Split of the panoramas that are cut.")] = "val",
    photos: Annotated[int, typer.Option(help="Number of photos.")] = 100,
    fov: Annotated[list[float] | None, typer.Option(help="Degrees; may be repeated.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures.")] = None,
) -> None:
    """Locate photos whose place is known."""
    samples, opened = Split.open(shards, split), Gallery.open(gallery)
    locator = Locator(opened)
    chosen = np.linspace(0, len(samples) - 1, photos).astype(int)
    azimuths = np.random.default_rng(0).uniform(0, 360, photos)
    table = Table("field of view", *(f"R@{k}" for k in DEPTHS), f"heading within {NEAR_DEG:g}")
    results = {}
    for width in fov or [90.0, 180.0, 360.0]:
        look = PhotoQuery.of(width, None, "panorama", 72)
        ranks, near = [], []
        for sample, azimuth in zip(chosen.tolist(), azimuths.tolist(), strict=True):
            found = locator(unseen_photo(samples, sample, azimuth, width), look, len(samples))
            names = [opened.place(each.item)["source_id"] for each in found]
            ranks.append(names.index(samples.source_id(sample)))
            heading = found[ranks[-1]].heading_deg
            true = azimuth + float(np.nan_to_num(samples.column("heading")[sample]))
            off = abs((heading - true + 180) % 360 - 180) if heading is not None else 180
            near.append(off <= NEAR_DEG)
        scores = {f"R@{k}": float(np.mean(np.array(ranks) < k)) for k in DEPTHS}
        results[f"{width:g}"] = {**scores, "heading": float(np.mean(near))}
        cells = (f"{value:.0%}" for value in results[f"{width:g}"].values())
        table.add_row(f"{width:g}", *cells)
    console = Console()
    console.print(table)
    by_chance = ", ".join(f"{k / len(opened.descriptors):.1%}" for k in DEPTHS)
    console.print(
        f"{photos} photos, {len(opened.descriptors)} places, by chance {by_chance}; "
        f"{2 * NEAR_DEG / 360:.0%} of the headings"
    )
    if json_file is not None:
        content = {"machine": machine(), "photos": photos, "places": len(opened.descriptors)}
        json_file.write_text(json.dumps({**content, "fov": results}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
