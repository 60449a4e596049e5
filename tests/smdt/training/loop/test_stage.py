from smdt.training.loop.stage import equal_slices


def test_equal_slices_partition():
    assert equal_slices(6, 3) == [slice(0, 2), slice(2, 4), slice(4, 6)]
