"""The bench is honest: colours alone do not find the place (docs/world.md)."""

import io
import multiprocessing

import numpy as np
import pytest
from PIL import Image

from data_shards.world.source import WorldSource

PAIRS = 500
HEIGHT, WIDTH = 64, 256
AZIMUTHS, ELEVATIONS = 8, 4
SOURCE = WorldSource(seed=0, train=0, val=PAIRS, ground_size=(HEIGHT, WIDTH), aerial_size=192)


def band_means(image):
    """Mean colour over 8 azimuths x 4 elevation bands: [96]."""
    cells = image.reshape(ELEVATIONS, HEIGHT // ELEVATIONS, AZIMUTHS, WIDTH // AZIMUTHS, 3)
    return cells.mean(axis=(1, 3)).ravel()


def polar(aerial):
    """The polar mapping of docs/mapping.md with the nearest pixel: enough for mean colours."""
    size = len(aerial)
    radius = (size / 2 * (HEIGHT - 1 - np.arange(HEIGHT)) / HEIGHT)[:, None]
    angle = 2 * np.pi * np.arange(WIDTH) / WIDTH
    x = np.clip(np.rint(size / 2 - radius * np.sin(angle)), 0, size - 1).astype(int)
    y = np.clip(np.rint(size / 2 + radius * np.cos(angle)), 0, size - 1).astype(int)
    return aerial[y, x]


def describe(row):
    parts = SOURCE.sample("val", row).parts
    ground, aerial = (
        np.asarray(Image.open(io.BytesIO(parts[part])), np.float64)
        for part in ("ground.jpg", "aerial.jpg")
    )
    return band_means(ground), band_means(polar(aerial))


@pytest.mark.slow
def test_nearest_mean_colours_find_less_than_one_place_in_twenty():
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pairs = pool.map(describe, range(PAIRS), chunksize=10)
    ground, aerial = (np.stack(side) for side in zip(*pairs, strict=True))
    squared = (ground**2).sum(1)[:, None] + (aerial**2).sum(1) - 2 * ground @ aerial.T
    recall = float(np.mean(squared.argmin(axis=1) == np.arange(PAIRS)))
    assert recall < 0.05
