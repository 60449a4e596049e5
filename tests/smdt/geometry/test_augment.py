import numpy as np
import pytest
import torch

from smdt.geometry.augment import AugmentConfig, Draw, draw

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


def test_quarter_turns_are_the_four_headings_alone():
    drawn = draw(AugmentConfig(turn="quarters"), list(range(400)))
    headings, counts = np.unique(drawn.clockwise_deg, return_counts=True)
    assert headings.tolist() == [0, 90, 180, 270]
    assert counts.min() > 60


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("heading", [0, 90, 180, 270])
def test_a_tile_moves_as_its_panorama(heading, mirrored):
    """North, east, south and west of a tile, seen from its centre before and after."""
    side, width = 9, 8
    tile, panorama = torch.zeros(1, 1, side, side), torch.zeros(1, 1, 1, width)
    middle, edge = side // 2, side - 1
    # Columns of a panorama whose middle looks north: south, west, north, east at its quarters.
    places = {"north": (0, middle, 4), "east": (middle, edge, 6)}
    places |= {"south": (edge, middle, 0), "west": (middle, 0, 2)}
    for value, (row, column, azimuth) in enumerate(places.values(), start=1):
        tile[..., row, column] = value
        panorama[..., azimuth] = value
    drawn = Draw(np.array([float(heading)]), np.array([mirrored]))
    moved_tile, moved_panorama = drawn.apply_to_tiles(tile)[0, 0], drawn.apply(panorama)[0, 0, 0]
    for row, column, azimuth in places.values():
        assert moved_tile[row, column] == moved_panorama[azimuth]


def test_each_tile_of_a_batch_has_a_turn_of_its_own():
    tiles = torch.rand(4, 3, 5, 5)
    drawn = Draw(np.array([0.0, 90.0, 180.0, 270.0]), np.zeros(4, dtype=bool))
    moved = drawn.apply_to_tiles(tiles)
    east_comes_up = torch.from_numpy(np.rot90(tiles[1].numpy(), axes=(1, 2)).copy())
    assert torch.equal(moved[0], tiles[0])
    assert torch.equal(moved[1], east_comes_up)
    assert torch.equal(moved[2], tiles[2].flip(1, 2))
