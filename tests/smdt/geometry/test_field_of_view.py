"""What a ground image shows: where it looks, how wide, and where that stands."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smdt.data.randomness import field_of_view_seed
from smdt.geometry.field_of_view import FieldOfViewCrop, RetrievalAugmentConfig, draw_field_of_view

WIDTH = 72  # 5 degrees a column, column 36 looks north


def headings() -> torch.Tensor:
    """A panorama whose pixels say in 5 degrees where they look, 1 to 72; 0 is nothing."""
    column = torch.arange(WIDTH)
    return (((column - WIDTH // 2) % WIDTH) + 1).to(torch.uint8).expand(1, 3, 2, WIDTH)


@given(st.integers(0, 71), st.integers(1, 71))
def test_a_photo_with_a_heading_stands_where_it_looks(look, seen):
    """Oracle: of every column, whether its heading is within the photo."""
    photo = FieldOfViewCrop(np.array([5.0 * look]), np.array([5.0 * seen]), heading_known=True)
    shown = photo.apply(headings())
    for column, value in enumerate(shown[0, 0, 0].tolist()):
        towards = (column - WIDTH // 2) % WIDTH
        from_look = (towards - look + WIDTH // 2) % WIDTH - WIDTH // 2
        inside = -(seen // 2) <= from_look < seen - seen // 2
        assert value == (towards + 1 if inside else 0)


@given(st.integers(0, 71), st.integers(1, 72))
def test_a_photo_without_a_heading_stands_in_the_middle(look, seen):
    photo = FieldOfViewCrop(np.array([5.0 * look]), np.array([5.0 * seen]), heading_known=False)
    values = photo.apply(headings())[0, 1, 1].tolist()
    first = WIDTH // 2 - seen // 2
    for column, value in enumerate(values):
        inside = first <= column < first + seen
        assert value == ((look + column - WIDTH // 2) % WIDTH + 1 if inside else 0)


def test_a_whole_panorama_with_its_heading_is_left_alone():
    look = draw_field_of_view((360.0, 360.0), False, [1, 2])
    images = torch.randint(0, 256, (2, 3, 4, WIDTH), dtype=torch.uint8)
    assert torch.equal(look.apply(images), images)


def test_looks_are_those_of_the_seeds_and_spread_over_the_range():
    seeds = [field_of_view_seed(0, 0, sample) for sample in range(2000)]
    look = draw_field_of_view((70.0, 180.0), True, seeds)
    again = draw_field_of_view((70.0, 180.0), True, seeds[7:9])
    assert np.array_equal(look.clockwise_deg[7:9], again.clockwise_deg)
    assert np.array_equal(look.fov_deg[7:9], again.fov_deg)
    assert look.fov_deg.min() >= 70
    assert look.fov_deg.max() <= 180
    for drawn, low, high in ((look.clockwise_deg, 0, 360), (look.fov_deg, 70, 180)):
        share, _ = np.histogram(drawn, bins=4, range=(low, high))
        assert abs(share - 500).max() < 5 * 20  # five standard deviations
    assert abs(np.corrcoef(look.clockwise_deg, look.fov_deg)[0, 1]) < 0.12


@pytest.mark.parametrize("fov", [(0, 90), (90, 361), (180, 90)])
def test_a_senseless_field_of_view_is_refused(fov):
    with pytest.raises(ValueError, match="fov_deg"):
        RetrievalAugmentConfig(fov_deg=fov)
