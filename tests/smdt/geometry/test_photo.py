import math

import numpy as np
import pytest
import torch
from PIL import Image

from smdt.geometry.photo import crop_photo, paste_into_panorama
from smdt.geometry.view import keep_field_of_view, turn


def test_a_piece_of_a_panorama_lies_where_it_was_cut():
    whole = torch.randint(0, 256, (32, 128, 3), dtype=torch.uint8)
    piece = whole[:, 48:80]  # 90 degrees around column 64, the middle
    laid = paste_into_panorama(piece, 90.0, "panorama", (32, 128), (-45.0, 45.0))
    assert laid.shape == (1, 3, 32, 128)
    assert torch.equal(laid[0, :, :, 48:80], piece.permute(2, 0, 1).float())
    assert laid[..., :48].sum() == laid[..., 80:].sum() == 0
    again = paste_into_panorama(whole, 360.0, "panorama", (32, 128), (-45.0, 45.0))
    assert torch.equal(again[0], whole.permute(2, 0, 1).float())


@pytest.mark.parametrize("azimuth", [-170.0, 0.0, 61.0, 300.0])
@pytest.mark.parametrize("fov", [1.0, 70.0, 90.0, 360.0])
def test_a_photo_that_was_cut_is_what_a_turned_panorama_keeps(azimuth, fov):
    whole = torch.randint(1, 256, (16, 128, 3), dtype=torch.uint8)
    laid = paste_into_panorama(
        crop_photo(whole, azimuth, fov), fov, "panorama", (16, 128), (-45.0, 45.0)
    )
    turned = turn(whole.permute(2, 0, 1).unsqueeze(0).float(), np.array([azimuth]))
    assert torch.equal(laid, keep_field_of_view(turned, np.array([fov])))


def test_a_photo_of_another_size_is_resized():
    piece = torch.full((301, 77, 3), 200, dtype=torch.uint8)
    laid = paste_into_panorama(piece, 70.0, "panorama", (32, 128), (-45.0, 45.0))
    seen = (laid[0, 0] > 0).sum(dim=1)
    assert (seen == round(70 * 128 / 360)).all()
    assert laid.max() == 200


@pytest.mark.parametrize(("fov", "elevation"), [(90.0, (-30.0, 30.0)), (60.0, (-40.0, 20.0))])
def test_a_rectilinear_photo_of_a_panorama_comes_back_as_that_panorama(fov, elevation):
    height, width = 64, 512
    low, high = elevation
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    smooth = 128 + 60 * np.sin(columns * 2 * np.pi / 128) + 60 * np.cos(rows * 2 * np.pi / 64)
    photo = np.zeros((300, 400))
    for row in range(300):  # a pinhole camera, ray by ray
        for column in range(400):
            right = (column + 0.5 - 200) / 200 * math.tan(math.radians(fov / 2))
            up = (150 - row - 0.5) / 200 * math.tan(math.radians(fov / 2))
            azimuth = math.degrees(math.atan2(right, 1))
            elevated = math.degrees(math.atan2(up, math.hypot(right, 1)))
            at_column = width / 2 + azimuth / 360 * width
            at_row = (high - elevated) / (high - low) * height - 0.5
            photo[row, column] = (
                128
                + 60 * math.sin(at_column * 2 * math.pi / 128)
                + 60 * math.cos(at_row * 2 * math.pi / 64)
            )
    pixels = torch.from_numpy(photo.round().astype(np.uint8))[..., None].expand(-1, -1, 3)
    laid = paste_into_panorama(pixels.contiguous(), fov, "rectilinear", (height, width), elevation)
    made = laid[0, 0].numpy()
    half = round(fov / 2 * width / 360)
    middle = made[height // 2 - 8 : height // 2 + 8, width // 2 - half + 2 : width // 2 + half - 2]
    assert (middle > 0).all()
    inside = made > 0
    assert not inside[:, : width // 2 - half - 1].any()
    assert not inside[:, width // 2 + half + 1 :].any()
    # away from the photo's edge, where it is blended with nothing
    core = np.array(Image.fromarray(inside).resize((width, height)))
    core[:, : width // 2 - half + 4] = core[:, width // 2 + half - 4 :] = False
    assert np.abs(made - smooth)[core].mean() < 2
    assert np.corrcoef(made[core], smooth[core])[0, 1] > 0.995
