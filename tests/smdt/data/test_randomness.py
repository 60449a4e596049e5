"""Seeds are functions of their use, and do not collide."""

from itertools import product

from smdt.data.randomness import chunk_seed, sample_seed

FROZEN_SAMPLE = 3786177085423240503
FROZEN_CHUNK = 113211562382759222


def test_seeds_stay_the_same_across_versions():
    assert sample_seed(1, 2, 3) == FROZEN_SAMPLE
    assert chunk_seed(1, 2, 3, 4) == FROZEN_CHUNK


def test_seeds_are_distinct_and_fit_a_torch_generator():
    words = list(product(range(6), repeat=4))
    seeds = {sample_seed(s, e, i) for s, e, i, _ in words} | {chunk_seed(*w) for w in words}
    assert len(seeds) == 6**3 + 6**4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_bits_are_balanced():
    """Over 4096 neighbouring samples each of the 63 bits is set about half the time."""
    seeds = [sample_seed(0, 0, i) for i in range(4096)]
    for bit in range(63):
        ones = sum(seed >> bit & 1 for seed in seeds)
        assert abs(ones - 2048) < 5 * 32
