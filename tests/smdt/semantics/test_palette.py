import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_shards.format.classes import CLASS_COLOURS, CLASS_COUNT, VOID
from smdt.semantics.palette import known, to_classes, to_colours

IDS = [*range(CLASS_COUNT), VOID]


def class_maps(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).choice(IDS, (2, 4, 6)).astype(np.uint8))


@given(seed=st.integers(0, 99), strength=st.floats(0, 0.2))
def test_what_was_coloured_reads_back_even_with_noise(seed, strength):
    maps = class_maps(seed)
    noise = torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    # Less than half of the distance between the nearest two colours.
    read = to_classes(to_colours(maps) + strength * noise)
    assert torch.equal(read[known(maps)], maps[known(maps)])
    assert int(read.max()) < CLASS_COUNT


def test_a_pixel_has_the_palette_s_colour():
    maps = class_maps(0)
    colours = ((to_colours(maps) + 1) * 127.5).round()
    for b, i, j in np.ndindex(2, 4, 6):
        assert tuple(colours[b, :, i, j].int().tolist()) == CLASS_COLOURS[int(maps[b, i, j])]


@given(seed=st.integers(0, 99))
def test_reading_equals_a_search_over_all_colours(seed):
    image = torch.rand(1, 3, 2, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    read = to_classes(image)
    levels = ((image + 1) * 127.5).numpy()
    for i, j in np.ndindex(2, 3):
        distances = [
            np.square(levels[0, :, i, j] - np.array(CLASS_COLOURS[label])).sum()
            for label in range(CLASS_COUNT)
        ]
        assert distances[int(read[0, i, j])] <= min(distances) * (1 + 1e-5)


def test_void_is_not_known():
    maps = class_maps(1)
    assert torch.equal(known(maps), maps != 255)
