import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smdt.geometry.mapping import (
    CACHED_GRIDS,
    GeometryConfig,
    GeometryError,
    PanoramaProjection,
    panorama_taps,
)

EXTENT_M = 60.0
ELEVATION_DEG = (-35.0, 30.0)
MAPPINGS = ["polar", "perspective", "mixed"]


def random_image(side: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (side, side, 3), dtype=torch.uint8, generator=generator)


def unroll(images, mapping="mixed", size=(8, 16), extent=EXTENT_M, elevation=ELEVATION_DEG, n=1):
    module = PanoramaProjection(GeometryConfig(mapping=mapping, supersample=n), *size)
    count = len(images)
    return module(images, np.full(count, extent), np.tile(elevation, (count, 1)))


def radius_oracle(mapping, row, height, side, extent, elevation, n):
    """One (sub-)row's radius, or None; the junction is looked for among all (sub-)rows."""

    def polar(v):
        return max(side / 2 * (height - 1 - v) / height, 0.0)

    def perspective(v):
        bottom, top = elevation
        delta = (top - bottom) / height
        angle = math.radians((v + 0.5 - top / delta) * delta)
        if angle <= 0:
            return None
        return min(2.0 * math.cos(angle) / math.sin(angle) * side / extent, side / 2)

    if mapping == "polar":
        return polar(row)
    if mapping == "perspective":
        return perspective(row)
    for k in range(height * n):
        v = (k + 0.5) / n - 0.5
        if v > row:
            break
        found = perspective(v)
        if found is not None and found <= polar(v):
            return perspective(row)
    return polar(row)


def mapping_oracle(image, mapping, size, extent, elevation, n=1):
    """The mapping of docs/mapping.md, pixel by pixel in float64: float64 [H, W, 3]."""
    side = len(image)
    height, width = size
    result = np.zeros((height, width, 3))
    for i in range(height):
        for j in range(width):
            for a in range(n):
                row = i + (a + 0.5) / n - 0.5
                radius = radius_oracle(mapping, row, height, side, extent, elevation, n)
                if radius is None:
                    continue
                for b in range(n):
                    azimuth = 2 * math.pi * (j + (b + 0.5) / n - 0.5) / width
                    x = side / 2 - radius * math.sin(azimuth)
                    y = side / 2 + radius * math.cos(azimuth)
                    x0, y0 = math.floor(x), math.floor(y)
                    for yy in (y0, y0 + 1):
                        for xx in (x0, x0 + 1):
                            if 0 <= xx < side and 0 <= yy < side:
                                weight = (1 - abs(x - xx)) * (1 - abs(y - yy))
                                result[i, j] += weight / n**2 * image[yy, xx]
    return result


@pytest.mark.parametrize("mapping", MAPPINGS)
@given(
    side=st.integers(2, 40),
    height=st.integers(1, 12),
    width=st.integers(1, 16),
    extent=st.floats(5, 200),
    elevation=st.tuples(st.floats(-90, 10), st.floats(15, 90)),
    n=st.integers(1, 3),
)
@settings(max_examples=15, deadline=None)
def test_equals_the_float64_oracle(mapping, side, height, width, extent, elevation, n):
    image = random_image(side)
    result = unroll([image], mapping, (height, width), extent, elevation, n)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    expected = mapping_oracle(image.numpy().astype(float), mapping, (height, width), extent,
                              elevation, n)  # fmt: skip
    np.testing.assert_allclose(result[0].permute(1, 2, 0).numpy(), expected, atol=2e-4)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_equals_the_oracle_at_a_real_size(mapping):
    image = random_image(750)
    result = unroll([image], mapping, (64, 128), 172.0, (-32.75, 32.75))
    expected = mapping_oracle(image.numpy().astype(float), mapping, (64, 128), 172.0,
                              (-32.75, 32.75))  # fmt: skip
    np.testing.assert_allclose(result[0].permute(1, 2, 0).numpy(), expected, atol=2e-4)


@pytest.mark.parametrize(
    ("east", "south", "column"),
    [(0, -20, 32), (20, 0, 48), (0, 20, 0), (-20, 0, 16)],
    ids=["north", "east", "south", "west"],
)
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_a_dot_appears_where_its_heading_says(mapping, east, south, column):
    image = torch.zeros(64, 64, 3, dtype=torch.uint8)
    image[32 + south, 32 + east] = 255
    panorama = unroll([image], mapping, (32, 64), extent=30.0)[0, 0]
    assert panorama.max() > 0
    assert int(panorama.sum(0).argmax()) == column


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_turning_the_tile_turns_the_panorama(mapping):
    image = random_image(48)
    image[0] = image[:, 0] = 0  # a quarter turn about (S/2, S/2) takes these outside
    quarter = np.roll(np.rot90(image.numpy()), 1, axis=0)  # counter-clockwise: north goes west
    turned = unroll([torch.from_numpy(quarter.copy())], mapping, (16, 32))
    expected = unroll([image], mapping, (16, 32)).roll(-8, dims=-1)
    torch.testing.assert_close(turned, expected, atol=0.01, rtol=0)


def test_supersampling_smooths_and_keeps_the_mean_level():
    flat = torch.full((32, 32, 3), 77, dtype=torch.uint8)
    torch.testing.assert_close(
        unroll([flat], "polar", n=4)[..., 2:, :], torch.full((1, 3, 6, 16), 77.0)
    )
    noise = [random_image(200)]
    assert unroll(noise, "polar", n=4).std() < 0.6 * unroll(noise, "polar").std()


def test_every_sample_has_its_own_size_extent_and_elevation():
    images = [random_image(20), random_image(33), random_image(20)]
    extents = np.array([30.0, 90.0, 60.0])
    elevations = np.array([[-30.0, 30.0], [-45.0, 45.0], [-20.0, 60.0]])
    module = PanoramaProjection(GeometryConfig(mapping="perspective"), 8, 16)
    together = module(images, extents, elevations)
    for i in range(3):
        alone = module(images[i : i + 1], extents[i : i + 1], elevations[i : i + 1])
        assert torch.equal(together[i], alone[0])
    assert not torch.equal(together[0], together[2])


def test_a_batch_may_be_one_tensor():
    batch = torch.stack([random_image(20, seed) for seed in (1, 2)])
    assert torch.equal(unroll(batch), unroll(list(batch)))


def test_the_configuration_fills_in_what_the_data_does_not_say():
    nothing = np.array([math.nan]), np.full((1, 2), math.nan)
    images = [random_image(20)]
    config = GeometryConfig(extent_m=EXTENT_M, elevation_deg=ELEVATION_DEG)
    filled = PanoramaProjection(config, 8, 16)(images, *nothing)
    assert torch.equal(filled, unroll(images))
    other = PanoramaProjection(GeometryConfig(extent_m=1.0, elevation_deg=(-1, 1)), 8, 16)
    assert torch.equal(other(images, np.array([EXTENT_M]), np.array([ELEVATION_DEG])), filled)
    PanoramaProjection(GeometryConfig(mapping="polar"), 8, 16)(images, *nothing)


def test_what_nobody_says_is_an_error_that_names_the_field():
    images, unknown = [random_image(20)], np.array([math.nan])
    module = PanoramaProjection(GeometryConfig(), 8, 16)
    with pytest.raises(GeometryError, match=r"geometry\.extent_m"):
        module(images, unknown, np.array([ELEVATION_DEG]))
    with pytest.raises(GeometryError, match=r"geometry\.elevation_deg"):
        module(images, np.array([EXTENT_M]), np.full((1, 2), math.nan))
    with pytest.raises(GeometryError, match="20x10 pixels is not square"):
        module([images[0][:, :10]], np.array([EXTENT_M]), np.array([ELEVATION_DEG]))
    with pytest.raises(GeometryError, match="not a range"):
        module(images, np.array([EXTENT_M]), np.array([[10.0, -10.0]]))
    with pytest.raises(GeometryError, match="not positive"):
        module(images, np.array([0.0]), np.array([ELEVATION_DEG]))
    with pytest.raises(ValueError, match="not a range"):
        GeometryConfig(elevation_deg=(10, -10))


def test_grids_are_kept_and_bounded():
    images = [random_image(20)]
    panorama_taps.cache_clear()
    first = unroll(images)
    unroll(images)
    assert panorama_taps.cache_info().hits == 1
    for extent in range(10, 10 + 2 * CACHED_GRIDS):
        unroll(images, extent=float(extent))
    assert panorama_taps.cache_info().currsize == CACHED_GRIDS
    assert torch.equal(unroll(images), first)
