import pytest
from pydantic import ValidationError

from smdt.geometry.aerial import RetrievalGeometryConfig


@pytest.mark.parametrize(
    ("panorama", "side"), [((64, 256), 128), ((128, 512), 256), ((32, 128), 64), ((112, 616), 256)]
)
def test_a_raw_tile_has_about_the_pixels_of_a_panorama(panorama, side):
    assert RetrievalGeometryConfig(panorama_size=panorama).tile_side == side


def test_a_raw_tile_may_be_of_another_size():
    assert RetrievalGeometryConfig(tile_size=384).tile_side == 384
    with pytest.raises(ValidationError, match="multiple of 16"):
        RetrievalGeometryConfig(tile_size=200)
