"""Frozen generators follow the batch to its device and make the CPU's images but for rounding."""

from dataclasses import replace

import torch

from smdt.data.evaluation_loader import EvaluationLoader
from smdt.data.split import Split
from smdt.stages.retrieval.aligned import FrozenAlignment

LEVEL = 1


def test_aligned_images(gpu, world, alignment):
    loader = EvaluationLoader(
        Split.open(world, "val"),
        views=("aerial",),
        batch=8,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
    )
    batch = next(iter(loader))
    frozen = FrozenAlignment(alignment.folder)
    here = frozen(batch, slice(0, 8))
    tiles = [image.to(gpu) for image in batch.images["aerial"]]
    there = frozen(replace(batch, images={"aerial": tiles}), slice(0, 8))
    assert (there.dtype, there.device) == (torch.uint8, gpu)
    # Convolutions in TF32 are rounded to ten bits.
    off = (there.cpu().int() - here.int()).abs()
    assert off.float().mean() < LEVEL
    assert off.max() < 16 * LEVEL
