"""Makes alignment.jpg: held-out pairs, what a trained alignment makes of them, above what is true.

python docs/images/alignment.py RUN SHARDS [number of pairs]

`smdt demo --full` leaves a run in demo/alignment and shards in demo/shards.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from smdt.data.evaluation_loader import EvaluationLoader
from smdt.data.split import Split
from smdt.geometry.view import to_levels
from smdt.stages.alignment.stage import AlignmentStage
from smdt.stages.trained import load_stage

GAP, CAPTION = 8, 14
UPPER = ("mapped aerial image I_a", "generated segmentation S_g'", "generated ground image I_g'")
LOWER = ("", "true segmentation S", "true ground image I")


def main(run: Path, shards: str, pairs: int) -> None:
    """Draw the figure into this folder."""
    config, stage = load_stage(run)
    assert isinstance(stage, AlignmentStage)
    split = Split.open(shards, config.evaluation.split)
    loader = EvaluationLoader(
        split, views=stage.views, batch=pairs, rank=0, world_size=1, device=torch.device("cpu")
    )
    batch = next(iter(loader))
    seen = stage.inputs(batch, slice(0, pairs))
    segmentation, ground = stage.align(seen.aerial)
    columns = zip(seen.aerial, segmentation, ground, strict=True)
    truths = zip(seen.segmentation, seen.ground, strict=True)
    height, width = seen.ground.shape[2:]
    row_height = height + CAPTION
    side = 2 * row_height - CAPTION
    pair_height = 2 * row_height + GAP
    figure = Image.new("RGB", (side + 3 * (width + GAP), pairs * pair_height), "white")
    draw = ImageDraw.Draw(figure)
    for index, (upper, lower) in enumerate(zip(columns, truths, strict=True)):
        top = index * pair_height
        draw.text((0, top), "aerial image, north up", fill="black")
        tile = Image.fromarray(np.asarray(batch.images["aerial"][index]))
        figure.paste(tile.resize((side, side)), (0, top + CAPTION))
        for row, (names, images) in enumerate(((UPPER, upper), (LOWER, (None, *lower)))):
            for column, (name, image) in enumerate(zip(names, images, strict=True)):
                if image is None:
                    continue
                place = (side + GAP + column * (width + GAP), top + row * row_height)
                draw.text(place, name, fill="black")
                figure.paste(Image.fromarray(pixels(image)), (place[0], place[1] + CAPTION))
    figure.save(Path(__file__).with_suffix(".jpg"), quality=88)


def pixels(image: torch.Tensor) -> NDArray[np.uint8]:
    """Return an image [3, H, W] in [-1, 1] as [H, W, 3] levels."""
    levels: NDArray[np.uint8] = to_levels(image).permute(1, 2, 0).numpy()
    return levels


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 4)
