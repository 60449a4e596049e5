import numpy as np
import torch

from smdt.evaluation.baseline import as_gallery, as_query, colour_band_descriptors
from smdt.evaluation.recall import true_ranks


def panoramas(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 16, 32), dtype=torch.uint8, generator=generator)


def test_descriptors_are_the_mean_colours_of_the_parts():
    images = panoramas(3)
    result = colour_band_descriptors(images).view(3, 3, 4, 8)
    for n in range(3):
        for c in range(3):
            for i in range(4):
                for j in range(8):
                    part = images[n, c, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].numpy()
                    assert np.isclose(result[n, c, i, j], part.mean())
    assert colour_band_descriptors(images).shape == (3, 96)


def test_ranks_are_of_the_euclidean_distance():
    ground, aerial = (colour_band_descriptors(panoramas(50, seed)) for seed in (0, 1))
    aerial[7] = aerial[3]
    distance = torch.cdist(ground, aerial).numpy()
    expected = [
        (row < row[i]).sum() + ((row == row[i]).sum() - 1) / 2 for i, row in enumerate(distance)
    ]
    own = torch.arange(50).unsqueeze(1)
    ranks = true_ranks(as_query(ground), as_gallery(aerial), own, block=9)
    np.testing.assert_array_equal(ranks.numpy(), expected)


def test_equal_panoramas_find_each_other_and_black_ones_are_no_error():
    colours = colour_band_descriptors(panoramas(20))
    colours[0] = 0
    own = torch.arange(20).unsqueeze(1)
    assert (true_ranks(as_query(colours), as_gallery(colours), own) == 0).all()
