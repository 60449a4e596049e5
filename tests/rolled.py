"""The same pairs twice: panoramas with north in the middle, and rolled with their heading said."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data_shards.build.dataset import build
from data_shards.format.plan import BuildOptions
from data_shards.sources.folder import FolderSource
from smdt.data.batch import Batch

PAIRS = {"train": 6, "val": 4}
HEIGHT, WIDTH = 24, 96


def build_pairs(root: Path, rolled_by: int, widths: Sequence[int] = (WIDTH,)) -> Path:
    """Build shards of a folder of noise; return where they are.

    Args:
        root: an empty folder.
        rolled_by: columns to the left that panorama and class map of the first pair are rolled;
            of each next pair that many more. 0 leaves north in the middle of all.
        widths: of the panoramas, in turn.
    """
    raw = root / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    number = 0
    for split, count in PAIRS.items():
        lines = ["ground,aerial,label,lat,lon,heading,extent"]
        for row in range(count):
            width = widths[row % len(widths)]
            number += 1
            columns = (rolled_by * number) % (2 * width) - width if rolled_by else 0
            ground = rng.integers(1, 256, (HEIGHT, width, 3), dtype=np.uint8)
            classes = rng.choice(np.array([0, 1, 2, 3, 4, 5, 255], np.uint8), (HEIGHT, width))
            aerial = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            names = [f"{what}-{split}-{row}.png" for what in ("g", "a", "l")]
            Image.fromarray(np.roll(ground, -columns, axis=1)).save(raw / names[0])
            Image.fromarray(aerial).save(raw / names[1])
            Image.fromarray(np.roll(classes, -columns, axis=1)).save(raw / names[2])
            heading = columns * 360 / width
            lines.append(f"{','.join(names)},{48 + 0.1 * number},11.5,{heading!r},100")
        (raw / f"{split}.csv").write_text("\n".join(lines) + "\n")
    build(FolderSource(raw), root / "shards", BuildOptions(samples_per_shard=3), workers=1)
    return root / "shards"


def rolled(batch: Batch, columns: Sequence[int]) -> Batch:
    """Return a batch whose panoramas and class maps are rolled further, and say so."""
    widths = np.array([image.shape[1] for image in batch.images["ground"]])
    turned = {
        view: [
            torch.from_numpy(np.roll(np.asarray(image), -by, axis=1))
            for image, by in zip(batch.images[view], columns, strict=True)
        ]
        for view in ("ground", "seg")
        if view in batch.images
    }
    heading_deg = np.nan_to_num(batch.heading_deg) + np.array(columns) * 360 / widths
    return replace(batch, images={**batch.images, **turned}, heading_deg=heading_deg)
