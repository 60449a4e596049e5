"""Raw data of a benchmark: JPEG pairs of CVUSA's sizes, from photographs or made up."""

from io import BytesIO
from pathlib import Path

import numpy as np
import typer
from PIL import Image

SIZES = {"aerial": (750, 750), "ground": (224, 1232)}
TRAINING_SIDE = 384
TRAINING_SIZE = {"ground_size": (128, 512), "aerial_size": TRAINING_SIDE}
"""Build options of shards that training reads without further conversion."""


def picture(height: int, width: int, seed: int) -> bytes:
    """A JPEG about as large as a photograph's: noise at all scales."""
    noise = np.random.default_rng(seed)
    levels = 128 + noise.normal(0, 7, (height, width, 1)).repeat(3, axis=2)
    for octave in range(2, 9):
        grain = noise.integers(0, 256, (2 + (height >> octave), 2 + (width >> octave), 3), np.uint8)
        smooth = Image.fromarray(grain).resize((width, height), Image.Resampling.BICUBIC)
        levels += (np.asarray(smooth) - 127.5) * octave / 24
    buffer = BytesIO()
    Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_raw(root: Path, pairs: int, photos: Path | None) -> None:
    """Write a folder of pairs.

    Raises:
        BadParameter: `photos` has none of a size.
    """
    for view, (height, width) in SIZES.items():
        if photos is None:
            data = [picture(height, width, seed) for seed in range(min(pairs, 20))]
        else:
            files = sorted(photos.rglob("*.jpg"))
            data = [p.read_bytes() for p in files if Image.open(p).size == (width, height)]
        if not data:
            raise typer.BadParameter(f"{photos} has no JPEG of {height}x{width}.")
        for row in range(pairs):
            (root / f"{view}{row}.jpg").write_bytes(data[row % len(data)])
    rows = [f"ground{row}.jpg,aerial{row}.jpg" for row in range(pairs)]
    (root / "train.csv").write_text("\n".join(["ground,aerial", *rows]) + "\n")
