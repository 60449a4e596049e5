"""DALI's decoder on the GPU against the one on the CPU, which is PIL's bit for bit.

nvJPEG rounds elsewhere than libjpeg-turbo. DALI's own tests allow a level on average; so do we, and
beside it that hardly any pixel is off by more than an eye could see.
"""

import numpy as np
import pytest
import torch

from smdt.data.pipeline import Decoder
from tests.pictures import JPEG_KINDS, encoded, picture

MEAN_LEVELS = 1.0
VISIBLE_LEVELS = 8
VISIBLE_SHARE = 1e-3


def decoded(device: str, view: str, images: list[bytes]) -> list[torch.Tensor]:
    decoder = Decoder([view], len(images), device, 0 if device == "gpu" else None, 2)
    return list(decoder.decode({view: images})[view])


def assert_close(gpu: torch.Tensor, cpu: torch.Tensor) -> None:
    assert gpu.device.type == "cuda"
    assert (gpu.dtype, gpu.shape) == (torch.uint8, cpu.shape)
    difference = (gpu.cpu().int() - cpu.int()).abs()
    assert difference.float().mean() <= MEAN_LEVELS
    assert (difference > VISIBLE_LEVELS).float().mean() <= VISIBLE_SHARE


@pytest.mark.parametrize("options", JPEG_KINDS)
@pytest.mark.parametrize("size", [(750, 750), (224, 1232), (97, 161)])
def test_photos_are_those_of_the_cpu(options, size):
    images = [encoded(picture(seed, *size), "JPEG", **options) for seed in range(4)]
    for gpu, cpu in zip(*(decoded(each, "ground", images) for each in ("gpu", "cpu")), strict=True):
        assert_close(gpu, cpu)


def test_sizes_may_differ_inside_a_batch():
    sizes = [(64, 96), (128, 96), (256, 512)]
    images = [encoded(picture(seed, *size), "JPEG") for seed, size in enumerate(sizes)]
    for gpu, cpu in zip(*(decoded(each, "aerial", images) for each in ("gpu", "cpu")), strict=True):
        assert_close(gpu, cpu)


def test_class_ids_are_exact():
    ids = np.random.default_rng(0).choice([0, 1, 2, 3, 4, 5, 255], (3, 224, 512)).astype(np.uint8)
    maps = decoded("gpu", "seg", [encoded(each, "PNG") for each in ids])
    assert np.array_equal(torch.stack(maps)[..., 0].cpu().numpy(), ids)


def test_a_held_batch_is_not_overwritten():
    """While it is held, and while work that was asked for on it still waits on the GPU."""
    decoder = Decoder(["ground"], 2, "gpu", 0, 2)
    sums, expected = [], []
    for step in range(16):
        height = 512 if step % 3 else 768  # both ways of handing over
        pixels = [picture(2 * step, 512, 512), picture(2 * step + 1, height, 512)]
        images = decoder.decode({"ground": [encoded(each, "PNG") for each in pixels]})["ground"]
        torch.cuda._sleep(10_000_000)  # so that the sums are taken after the next batches
        sums += [image.long().sum() for image in images]
        expected += [int(each.sum()) for each in pixels]
        del images
    assert [int(each) for each in sums] == expected
