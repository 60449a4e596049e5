import numpy as np
import torch

from smdt.geometry.augment import AugmentConfig, draw

BOTH = AugmentConfig(turn=True, mirror=True)


def test_nothing_is_drawn_unless_it_is_asked_for():
    panoramas = torch.rand(3, 3, 4, 16)
    assert torch.equal(draw(AugmentConfig(), [1, 2, 3]).apply(panoramas), panoramas)


def test_both_views_of_a_pair_move_alike_column_by_column():
    columns = torch.arange(16.0).expand(40, 1, 2, 16)
    drawn = draw(BOTH, list(range(40)))
    moved, again = drawn.apply(columns), drawn.apply(100 + columns)
    assert torch.equal(again, moved + 100)
    for row in moved[:, 0, 0]:
        steps = (row[1:] - row[:-1]) % 16
        assert torch.equal(steps, torch.full((15,), 1.0)) or torch.equal(
            steps, torch.full((15,), 15.0)
        )


def test_a_draw_is_of_the_sample_and_not_of_its_batch():
    together, alone = draw(BOTH, [5, 6, 7]), draw(BOTH, [6])
    assert together.clockwise_deg[1] == alone.clockwise_deg[0]
    assert together.mirrored[1] == alone.mirrored[0]


def test_headings_cover_the_circle_and_half_is_mirrored():
    drawn = draw(BOTH, list(range(4000)))
    counts, _ = np.histogram(drawn.clockwise_deg, bins=8, range=(0, 360))
    assert counts.min() > 400
    assert abs(drawn.mirrored.mean() - 0.5) < 0.05
