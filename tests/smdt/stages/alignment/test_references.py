import numpy as np
import pytest
import torch

from data_shards.format.classes import VOID
from smdt.stages.alignment.config import AlignmentConfig
from smdt.stages.alignment.references import averages
from smdt.stages.registry import references


def test_averages_are_those_of_all_batches():
    generator = np.random.default_rng(0)
    ground = torch.from_numpy(generator.uniform(-1, 1, (7, 3, 4, 5)).astype(np.float32))
    ids = generator.choice([0, 1, 5, VOID], (7, 4, 5)).astype(np.uint8)
    ids[:, 0, 0] = VOID
    ids[:, 1, 1] = [2, 2, 2, 4, 4, VOID, VOID]
    maps = torch.from_numpy(ids)
    cuts = (slice(0, 3), slice(3, 7))
    mean, classes = averages((ground[c], maps[c]) for c in cuts)
    np.testing.assert_allclose(mean, ground.numpy().mean(axis=0), atol=1e-6)
    assert classes.dtype == torch.uint8
    for i, j in np.ndindex(4, 5):
        known = ids[:, i, j][ids[:, i, j] != VOID]
        common = np.bincount(known, minlength=6).argmax()
        assert int(classes[i, j]) == common
    assert int(classes[1, 1]) == 2


@pytest.mark.slow
def test_the_references_of_an_alignment_are_images_and_class_maps_without_learning(world, tmp_path):
    config = AlignmentConfig.model_validate(
        {
            "stage": "alignment",
            "run": {"name": "test", "out": str(tmp_path / "run")},
            "data": {"shards": str(world)},
            "geometry": {"panorama_size": [32, 128]},
            "model": {"generator_width": 2, "discriminator_width": 2},
        }
    )
    compared = references(config, str(world), "val")
    assert {name: sorted(scores) for name, scores in compared.items()} == {
        "the model before training": ["PSNR", "SD", "SSIM", "deviation", "mIoU"],
        "mapped aerial image": ["PSNR", "SD", "SSIM"],
        "mean training image": ["PSNR", "SD", "SSIM"],
        "most common class of each pixel": ["mIoU"],
    }
    # A blurred mean is nearer to the held-out images, pixel by pixel, than a view from above.
    mean, mapped = compared["mean training image"], compared["mapped aerial image"]
    assert mean["PSNR"] > mapped["PSNR"]
    assert 0.2 < compared["most common class of each pixel"]["mIoU"] < 0.9
