import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from smdt.evaluation.images import ImageQuality, psnr, sharpness_difference

CPU = torch.device("cpu")


def pair(count=3, height=24, width=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    real = torch.rand(count, 3, height, width, generator=generator) * 255
    noise = torch.randn(real.shape, generator=generator) * 20
    return (real + noise).clamp(0, 255), real


@pytest.mark.parametrize(("height", "width"), [(16, 16), (24, 40), (33, 17)])
def test_ssim_and_psnr_are_those_of_torchmetrics(height, width):
    generated, real = pair(2, height, width)
    quality = ImageQuality()
    quality.update(generated, real)
    scores = quality.compute(CPU)
    a, b = (generated / 255).double(), (real / 255).double()
    expected = structural_similarity_index_measure(a, b, data_range=1.0)
    assert scores["SSIM"] == pytest.approx(float(expected), abs=1e-5)
    expected = peak_signal_noise_ratio(a, b, data_range=1.0, dim=(1, 2, 3))
    assert scores["PSNR"] == pytest.approx(float(expected), abs=1e-4)


def sharpness_oracle(a, b):
    """Mathieu et al.'s formula pixel by pixel, one channel."""
    total = 0.0
    for i in range(1, a.shape[0]):
        for j in range(1, a.shape[1]):
            of_a = abs(a[i, j] - a[i - 1, j]) + abs(a[i, j] - a[i, j - 1])
            of_b = abs(b[i, j] - b[i - 1, j]) + abs(b[i, j] - b[i, j - 1])
            total += abs(of_a - of_b)
    return total / ((a.shape[0] - 1) * (a.shape[1] - 1))


def test_sharpness_difference_is_that_of_plain_loops():
    generated, real = (image.double() / 255 for image in pair(2))
    for values in (0, 1):
        channels = [
            sharpness_oracle(generated[values, c].numpy(), real[values, c].numpy())
            for c in range(3)
        ]
        expected = -10 * np.log10(np.mean(channels))
        assert float(sharpness_difference(generated, real)[values]) == pytest.approx(expected)


def test_a_brighter_image_is_as_sharp():
    real = torch.rand(1, 3, 16, 16, dtype=torch.float64) / 2
    assert sharpness_difference(real + 0.25, real) > 100
    assert psnr(real + 0.25, real) == pytest.approx(-20 * np.log10(0.25))


def test_panogan_compat_is_599_db_higher_and_pads_with_zeros():
    generated, real = pair()
    plain, compat = ImageQuality(), ImageQuality(panogan_compat=True)
    for quality in (plain, compat):
        quality.update(generated, real)
    standard, published = plain.compute(CPU), compat.compute(CPU)
    for name in ("PSNR", "SD"):
        assert published[name] - standard[name] == pytest.approx(5.987, abs=1e-3)
    a, b = (image.double().numpy() / 255 for image in (generated, real))

    def blur(images):
        sigma = (0, 0, 1.5, 1.5)
        return gaussian_filter(images, sigma, mode="constant", radius=(0, 0, 5, 5))

    mean_a, mean_b = blur(a), blur(b)
    c1, c2 = 0.01**2, 0.03**2
    expected = ((2 * mean_a * mean_b + c1) * (2 * (blur(a * b) - mean_a * mean_b) + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (blur(a * a) - mean_a**2 + blur(b * b) - mean_b**2 + c2)
    )
    assert published["SSIM"] == pytest.approx(expected.mean(), abs=1e-5)
    assert published["SSIM"] != pytest.approx(standard["SSIM"], abs=1e-4)


@pytest.mark.parametrize("sizes", [[1, 1, 1], [3, 1], [1, 4]])
def test_figures_do_not_depend_on_how_the_images_are_batched(sizes):
    generated, real = pair(sum(sizes))
    whole, parts = ImageQuality(), ImageQuality()
    whole.update(generated, real)
    for a, b in zip(generated.split(sizes), real.split(sizes), strict=True):
        parts.update(a, b)
    assert parts.compute(CPU) == pytest.approx(whole.compute(CPU), rel=1e-6)


def test_equal_images_are_as_alike_as_can_be():
    image = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    quality = ImageQuality()
    quality.update(image, image)
    assert quality.compute(CPU) == {
        "SSIM": pytest.approx(1.0),
        "PSNR": float("inf"),
        "SD": float("inf"),
    }


def test_no_image_has_no_quality():
    assert all(np.isnan(value) for value in ImageQuality().compute(CPU).values())


@pytest.mark.slow
def test_ranks_add_up(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        found = pool.starmap(_rank_quality, [(rank, str(tmp_path / "group")) for rank in (0, 1)])
    whole = ImageQuality()
    whole.update(*pair(5))
    assert found[0] == found[1] == pytest.approx(whole.compute(CPU), rel=1e-6)


def _rank_quality(rank, file):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2
    )
    generated, real = pair(5)
    rows = slice(0, 3) if rank == 0 else slice(3, 5)
    quality = ImageQuality()
    quality.update(generated[rows], real[rows])
    scores = quality.compute(CPU)
    torch.distributed.destroy_process_group()
    return scores
