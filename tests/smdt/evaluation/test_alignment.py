import numpy as np
import pytest
import torch

from smdt.evaluation.alignment import AlignmentScores


def images(seed: int, count: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 16, 20, generator=generator) * 2 - 1


def class_maps(seed: int, count: int = 5) -> torch.Tensor:
    ids = np.random.default_rng(seed).integers(0, 6, (count, 16, 20))
    return torch.from_numpy(ids.astype(np.uint8))


def scores_of(generated: torch.Tensor, real: torch.Tensor, batch: int) -> dict[str, float]:
    measured = AlignmentScores((16, 20), torch.device("cpu"))
    for start in range(0, len(generated), batch):
        rows = slice(start, start + batch)
        measured.update(generated[rows], real[rows], class_maps(1)[rows], class_maps(2)[rows])
    scores, count = measured.compute()
    assert count == len(generated)
    return scores


def test_scores_do_not_depend_on_the_batches():
    whole = scores_of(images(0), images(1), 5)
    assert list(whole) == ["SSIM", "PSNR", "SD", "mIoU", "deviation"]
    assert scores_of(images(0), images(1), 2) == pytest.approx(whole)


def test_the_deviation_is_that_of_each_pixel_over_the_samples():
    generated = images(0)
    levels = ((generated + 1) * 127.5).round().numpy() / 255
    expected = np.sqrt(levels.var(axis=0).mean())
    assert scores_of(generated, images(1), 5)["deviation"] == pytest.approx(expected)


def test_one_image_for_everything_has_no_deviation():
    collapsed = images(0, 1).expand(5, -1, -1, -1)
    assert scores_of(collapsed, images(1), 5)["deviation"] == pytest.approx(0, abs=1e-7)


def test_computing_twice_gives_the_same():
    measured = AlignmentScores((16, 20), torch.device("cpu"))
    measured.update(images(0), images(1), class_maps(1), class_maps(2))
    assert measured.compute() == measured.compute()
