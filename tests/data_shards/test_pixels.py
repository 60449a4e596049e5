import numpy as np
import pytest

from data_shards.pixels import GRID_STEP, PixelSums, grid_histogram


@pytest.mark.parametrize("shape", [(64, 128, 3), (64, 128), (3, 5, 3), (37, 90, 3)])
def test_the_histogram_is_that_of_a_grid_of_pixels(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    histogram = grid_histogram(image)
    points = max(1, shape[0] // GRID_STEP) * max(1, shape[1] // GRID_STEP)
    assert histogram.shape == (3, 256)
    assert (histogram.sum(axis=1) == points).all()
    channels = image.reshape(-1, 1 if image.ndim == 2 else 3)
    for channel in range(3):
        levels = np.flatnonzero(histogram[channel])
        assert set(levels) <= set(channels[:, channel % channels.shape[1]])


def test_statistics_are_those_of_numpy_however_they_are_added():
    pixels = np.random.default_rng(1).integers(0, 256, (3, 5000))
    pieces = [
        PixelSums.from_histogram(np.stack([np.bincount(c, minlength=256) for c in piece]))
        for piece in np.split(pixels, [10, 2000], axis=1)
    ]
    statistics = (pieces[0] + pieces[1] + pieces[2]).statistics()
    assert pieces[2] + (pieces[0] + pieces[1]) == pieces[0] + pieces[1] + pieces[2]
    np.testing.assert_allclose(statistics.mean, pixels.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(statistics.std, pixels.std(axis=1), rtol=1e-12)
