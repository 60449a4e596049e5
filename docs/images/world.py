"""Makes world.jpg: pairs of the synthetic world with their class maps.

python docs/images/world.py
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from data_shards.format.classes import PALETTE
from data_shards.world.source import WorldSource

SEED = 0
ROWS = (8, 17, 9, 1, 4, 15)
SIDE, WIDTH, GAP = 256, 768, 6
OUT = Path("docs/images/world.jpg")


def main() -> None:
    """Draw one line a pair: the aerial tile, the panorama above its class map."""
    half = (SIDE - GAP) // 2
    source = WorldSource(SEED, train=max(ROWS) + 1, val=0, ground_size=(half, WIDTH))
    sheet = Image.new("RGB", (SIDE + GAP + WIDTH, (SIDE + GAP) * len(ROWS) - GAP), "white")
    for line, row in enumerate(ROWS):
        parts = source.sample("train", row).parts
        top = line * (SIDE + GAP)
        classes = np.asarray(Image.open(io.BytesIO(parts["seg.png"])))
        sheet.paste(Image.open(io.BytesIO(parts["aerial.jpg"])), (0, top))
        sheet.paste(Image.open(io.BytesIO(parts["ground.jpg"])), (SIDE + GAP, top))
        sheet.paste(Image.fromarray(PALETTE[classes]), (SIDE + GAP, top + half + GAP))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(OUT, quality=85)


if __name__ == "__main__":
    main()
