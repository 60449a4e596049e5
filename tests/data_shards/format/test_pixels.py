import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from data_shards.format.pixels import GRID_STEP, PixelSums, grid_histogram, pixel_digest


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


@given(st.integers(1, 200), st.integers(1, 200), st.booleans())
def test_the_grid_is_that_of_pillows_nearest_filter(height, width, grey):
    image = np.random.default_rng(height * width).integers(
        0, 256, (height, width) if grey else (height, width, 3), dtype=np.uint8
    )
    size = max(1, width // GRID_STEP), max(1, height // GRID_STEP)
    grid = Image.fromarray(image).resize(size, Image.Resampling.NEAREST)
    expected = np.broadcast_to(np.reshape(grid.histogram(), (-1, 256)), (3, 256))
    np.testing.assert_array_equal(grid_histogram(image), expected)


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=50)), st.data())
def test_equal_pixels_have_equal_digests_and_one_changed_level_is_another(pixels, data):
    digest = pixel_digest(pixels)
    assert len(digest) == 16
    assert digest == pixel_digest(np.asfortranarray(pixels))
    changed = pixels.copy()
    changed[data.draw(st.tuples(*(st.integers(0, side - 1) for side in pixels.shape)))] ^= 1
    assert digest != pixel_digest(changed)


def test_the_digest_knows_shape_and_the_order_of_rows():
    zeros = np.zeros((64, 96), np.uint8)
    same_bytes = [zeros, zeros.reshape(96, 64), zeros.reshape(64, 32, 3), zeros[:32]]
    assert len({pixel_digest(image) for image in same_bytes}) == 4
    picture = np.random.default_rng(0).integers(0, 256, (64, 8, 3), np.uint8)
    assert pixel_digest(picture) != pixel_digest(np.concatenate([picture[32:], picture[:32]]))


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
