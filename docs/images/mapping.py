"""Makes mapping.jpg: a tile of the synthetic world, its three mappings, the panorama it belongs to.

python docs/images/mapping.py [row of the world's train split]
"""

import io
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from PIL import Image, ImageDraw

from data_shards.world.source import WorldSource
from smdt.geometry.mapping import GeometryConfig, PanoramaProjection, Projection

HEIGHT, WIDTH, GAP, CAPTION = 128, 512, 8, 16
ROWS = 4


def main(row: int) -> None:
    """Draw the figure into this folder."""
    world = WorldSource(seed=0, train=row + 1, val=0, difficulty="easy", aerial_size=750)
    sample = world.sample("train", row)
    ground, aerial = (
        Image.open(io.BytesIO(sample.parts[name])) for name in ("ground.jpg", "aerial.jpg")
    )
    tile = [torch.from_numpy(np.array(aerial))]
    extent_m, elevation_deg = np.array([sample.meta.extent_m]), np.array([sample.meta.elevation])
    pictures = {"ground panorama": ground}
    for mapping in get_args(Projection):
        module = PanoramaProjection(GeometryConfig(mapping=mapping), HEIGHT, WIDTH)
        panorama = module(tile, extent_m, elevation_deg)[0]
        pixels = panorama.round().byte().permute(1, 2, 0).numpy()
        pictures[mapping] = Image.fromarray(pixels)
    side = ROWS * (HEIGHT + CAPTION + GAP) - CAPTION - GAP
    figure = Image.new("RGB", (side + GAP + WIDTH, side + CAPTION), "white")
    draw = ImageDraw.Draw(figure)
    figure.paste(aerial.resize((side, side)), (0, CAPTION))
    draw.text((0, 2), f"aerial tile, north up, {sample.meta.extent_m:.0f} m", fill="black")
    for index, (name, picture) in enumerate(pictures.items()):
        top = index * (HEIGHT + CAPTION + GAP)
        draw.text((side + GAP + 16, top + 2), name, fill="black")
        for quarter, heading in enumerate("SWNE"):
            draw.text((side + GAP + quarter * WIDTH // 4, top + 2), heading, "red")
        figure.paste(picture, (side + GAP, top + CAPTION))
    figure.save(Path(__file__).with_suffix(".jpg"), quality=88)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
