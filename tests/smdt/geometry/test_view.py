import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smdt.geometry.view import (
    keep_field_of_view,
    normalise,
    resize,
    resize_classes,
    roll_to_heading,
    roll_to_north,
    turn,
)


def panorama(width: int = 36) -> torch.Tensor:
    return torch.arange(2 * 3 * 4 * width).view(2, 3, 4, width)


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("degrees", [0, 360, -360, 720])
def test_a_whole_turn_is_the_identity(degrees):
    assert torch.equal(turn(panorama(), np.full(2, float(degrees))), panorama())


@given(st.floats(-720, 720), st.integers(1, 40))
def test_a_turn_and_its_reverse_are_the_identity(degrees, width):
    there = turn(panorama(width), np.full(2, degrees))
    assert torch.equal(turn(there, np.full(2, -degrees)), panorama(width))


def test_every_panorama_has_its_own_turn_to_the_nearest_column():
    turned = turn(panorama(), np.array([90.0, -14.9]))  # a column is 10 degrees
    assert torch.equal(turned[0], panorama()[0].roll(-9, dims=-1))
    assert torch.equal(turned[1], panorama()[1].roll(1, dims=-1))


def test_a_turn_by_minus_its_heading_puts_north_in_the_centre():
    width, heading_deg = 72, 50.0  # the centre looks to 50 degrees: north is 10 columns to its left
    image = torch.zeros(1, 1, 1, width)
    image[..., width // 2 - 10] = 1
    assert int(turn(image, np.array([-heading_deg])).argmax()) == width // 2


@given(st.integers(1, 50), st.integers(-200, 200), st.floats(-360, 360))
def test_a_rolled_panorama_with_its_heading_is_the_same_panorama(width, columns, heading_deg):
    image = noise(2, width)
    rolled = torch.from_numpy(np.roll(image.numpy(), -columns, axis=1))
    said = np.array([heading_deg, heading_deg + columns * 360 / width])
    plain, turned = roll_to_north([image, rolled], said)
    assert torch.equal(plain, turned)
    assert torch.equal(roll_to_heading([turned], said[1:])[0], rolled)


@given(st.floats(-720, 720), st.integers(8, 64))
def test_north_comes_to_within_half_a_column_of_the_middle(heading_deg, width):
    """Oracle: of each column the direction that it looks to, carried in its pixels."""
    degrees = heading_deg + (torch.arange(width, dtype=torch.float64) - width // 2) * 360 / width
    (turned,) = roll_to_north([degrees.view(1, width, 1)], np.array([heading_deg]))
    middle = float(turned[0, width // 2])
    assert abs((middle + 180) % 360 - 180) <= 180 / width + 360 / width / 1000


def test_panoramas_of_one_size_stay_one_tensor_and_an_unknown_heading_is_north():
    images = torch.stack([noise(4, 8), noise(4, 8, seed=1)])
    turned = roll_to_north(images, np.array([90.0, np.nan]))
    assert torch.equal(turned[0], images[0].roll(2, dims=1))
    assert torch.equal(turned[1], images[1])
    assert isinstance(turned, torch.Tensor)


@given(st.integers(1, 100), st.lists(st.floats(0.1, 360), min_size=1, max_size=3))
def test_the_field_of_view_is_the_middle_and_the_rest_is_black(width, fovs):
    images = torch.arange(1, 1 + width, dtype=torch.uint8).expand(len(fovs), 3, 2, width)
    kept = keep_field_of_view(images, np.array(fovs))
    assert kept.dtype == torch.uint8
    for image, fov in zip(kept, fovs, strict=True):
        seen = max(round(width * fov / 360), 1)
        first = width // 2 - seen // 2
        expected = [c + 1 if first <= c < first + seen else 0 for c in range(width)]
        assert all(row.tolist() == expected for row in image.flatten(0, 1))


def triangle_oracle(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Anti-aliased bilinear: a triangle as wide as the scale, axis by axis, float64."""
    result = image.astype(float)
    for axis in (0, 1):
        count = result.shape[axis]
        scale = count / size[axis]
        reach = max(scale, 1.0)
        weights = np.zeros((size[axis], count))
        for out in range(size[axis]):
            centre = (out + 0.5) * scale
            for k in range(count):
                weights[out, k] = max(0.0, 1 - abs(k + 0.5 - centre) / reach)
        weights /= weights.sum(1, keepdims=True)
        result = np.moveaxis(np.tensordot(weights, result, (1, axis)), 0, axis)
    return result


@pytest.mark.parametrize("size", [(8, 16), (30, 50), (64, 64)])
def test_resize_is_an_antialiased_triangle_within_a_level(size):
    image = noise(40, 61)
    resized = resize([image], size)
    assert resized.dtype == torch.uint8
    result = resized[0].permute(1, 2, 0).numpy().astype(float)
    assert np.abs(result - triangle_oracle(image.numpy(), size)).max() <= 1.01


def test_resize_takes_mixed_sizes_and_leaves_the_right_size_alone():
    images = [noise(16, 32), noise(50, 40, seed=1)]
    resized = resize(images, (16, 32))
    assert resized.shape == (2, 3, 16, 32)
    assert resized.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(resized[0].permute(1, 2, 0), images[0])
    assert torch.equal(resized[1:], resize(images[1:], (16, 32)))
    assert torch.equal(resize(torch.stack(images[:1]), (16, 32)), resized[:1])


def test_normalise_in_the_manifests_units():
    image = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert normalise(image).flatten().tolist() == [-1, 1] * 3
    result = normalise(image, mean=(0, 51, 255), std=(1, 51, 255))
    assert result.dtype == torch.float32
    assert result.flatten().tolist() == [0, 255, -1, 4, -1, 0]


@pytest.mark.parametrize("size", [(8, 16), (20, 30), (64, 64)])
def test_class_maps_are_resized_to_the_nearest_pixel(size):
    ids = torch.tensor([0, 1, 2, 3, 4, 5, 255], dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    maps = [ids[torch.randint(7, (h, w, 1), generator=generator)] for h, w in ((20, 30), (13, 47))]
    resized = resize_classes(maps, size)
    assert resized.shape == (2, *size)
    assert resized.dtype == torch.uint8
    for source, result in zip(maps, resized, strict=True):
        rows, columns = (
            ((np.arange(out) + 0.5) * count / out).astype(int)
            for out, count in zip(size, source.shape[:2], strict=True)
        )
        assert torch.equal(result, source[..., 0][rows][:, columns])
