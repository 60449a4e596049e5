"""What happens to images on the device: one code path, so the CPU's numbers but for rounding."""

import numpy as np
import pytest
import torch

from smdt.geometry.augment import AugmentConfig, draw
from smdt.geometry.mapping import GeometryConfig, PanoramaProjection
from smdt.geometry.view import resize, resize_classes
from smdt.semantics.augment import SemanticsConfig, draw_class_masking
from tests.pictures import picture

LEVEL = 1.0
EXTENT_M = np.array([172.0, 100.0])
ELEVATION_DEG = np.array([[-32.75, 32.75], [-45.0, 45.0]])


@pytest.fixture
def pictures():
    return [torch.from_numpy(picture(seed, 384, 384)) for seed in range(2)]


@pytest.mark.parametrize("mapping", ["polar", "perspective", "mixed"])
@pytest.mark.parametrize("supersample", [1, 2])
def test_mapped_images(gpu, pictures, mapping, supersample):
    module = PanoramaProjection(GeometryConfig(mapping=mapping, supersample=supersample), 128, 512)
    there, here = (
        module([image.to(device) for image in pictures], EXTENT_M, ELEVATION_DEG)
        for device in (gpu, "cpu")
    )
    assert there.device == gpu
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=0.01)


@pytest.mark.parametrize("size", [(128, 512), (384, 384), (500, 700)])
def test_resized_images(gpu, pictures, size):
    there, here = (
        resize([image.to(device) for image in pictures], size) for device in (gpu, "cpu")
    )
    assert (there.dtype, there.device) == (torch.uint8, gpu)
    # The CPU's kernel for bytes rounds between rows and columns.
    assert (there.cpu().int() - here.int()).abs().max() <= 2 * LEVEL
    assert (there.cpu().int() - here.int()).float().abs().mean() <= 0.5 * LEVEL


def test_class_maps_painting_and_turning(gpu):
    maps = [torch.randint(0, 6, (64, 256, 1), dtype=torch.uint8) for _ in range(4)]
    ground = torch.rand(4, 3, 32, 128)
    drawn = draw(AugmentConfig(turn=True, mirror=True), [3, 4, 5, 6])
    config = SemanticsConfig(keep={"road": 0.5}, remove={"sky": 0.5})
    painted = draw_class_masking(config, seed=1, epoch=0, sample_ids=np.arange(4))

    def augmented(device: torch.device) -> torch.Tensor:
        classes = resize_classes([each.to(device) for each in maps], (32, 128))
        return drawn.apply(painted.apply(ground.to(device), classes))

    assert torch.equal(augmented(gpu).cpu(), augmented(torch.device("cpu")))
