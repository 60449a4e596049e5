"""A contact sheet: pairs of a data set as pictures."""

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from data_shards.base.errors import ShardError
from data_shards.base.store import Location, location, read_bytes
from data_shards.format import layout
from data_shards.format.classes import PALETTE
from data_shards.format.images import decode
from data_shards.format.index import read_table
from data_shards.format.manifest import load
from data_shards.format.sample import RejectedSample

COLUMNS = 2
TILE = 192
PANORAMA = (2 * TILE, TILE // 2)
GAP = 12
CAPTION = 16
CELL = (TILE + GAP + PANORAMA[0], CAPTION + TILE)
BACKGROUND = (255, 255, 255)
INK = (40, 40, 40)


def contact_sheet(root: str | Location, pairs_per_split: int = 6) -> Image.Image:
    """Samples spread evenly over each split: the tile, and next to it panorama over class map.

    Raises:
        InputError: `root` is not a finished data set.
        ShardError: a sample on the sheet is damaged.
    """
    root = location(root)
    cells = [
        _cell(root, split, row)
        for split in load(root).splits
        for row in _spread(root, split, pairs_per_split)
    ]
    rows = -(-len(cells) // COLUMNS)
    sheet = Image.new(
        "RGB",
        (COLUMNS * (CELL[0] + GAP) + GAP, rows * (CELL[1] + GAP) + GAP),
        BACKGROUND,
    )
    for number, cell in enumerate(cells):
        row, column = divmod(number, COLUMNS)
        sheet.paste(cell, (GAP + column * (CELL[0] + GAP), GAP + row * (CELL[1] + GAP)))
    return sheet


def _spread(root: Location, split: str, count: int) -> list[dict[str, Any]]:
    table = read_table(layout.table_path(root, split))
    rows = np.unique(np.linspace(0, table.num_rows - 1, count).round().astype(np.int64))
    selected: list[dict[str, Any]] = table.take(rows).to_pylist()
    return selected


def _cell(root: Location, split: str, row: dict[str, Any]) -> Image.Image:
    cell = Image.new("RGB", CELL, BACKGROUND)
    ImageDraw.Draw(cell).text((0, 0), f"{row['key']}   {row['source_id']}"[:90], fill=INK)
    right = TILE + GAP
    for part, corner, size in (
        ("aerial", (0, CAPTION), (TILE, TILE)),
        ("ground", (right, CAPTION), PANORAMA),
        ("seg", (right, CAPTION + PANORAMA[1]), PANORAMA),
    ):
        if row[f"{part}_size"]:
            cell.paste(_picture(root, split, row, part, size), corner)
    return cell


def _picture(
    root: Location, split: str, row: dict[str, Any], part: str, size: tuple[int, int]
) -> Image.Image:
    tar = layout.tar_path(root, split, row["shard"])
    try:
        data = read_bytes(tar, row[f"{part}_offset"], row[f"{part}_size"])
        image = decode(f"{part} of {row['key']}", data)
    except OSError as error:
        raise ShardError(f"{tar} can't be read: {error.strerror}.") from None
    except RejectedSample as rejection:
        raise ShardError(f"{rejection.detail} Run `smdt shards verify {root}`.") from None
    if part == "seg":
        coloured = Image.fromarray(PALETTE[np.asarray(image)])
        return coloured.resize(size, Image.Resampling.NEAREST)
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
