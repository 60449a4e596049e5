import shutil

import numpy as np
import pytest

from data_shards.base.errors import ShardError
from data_shards.format.classes import PALETTE
from data_shards.inspect.sheet import CAPTION, GAP, PANORAMA, TILE, contact_sheet


def test_it_shows_tile_panorama_and_coloured_class_map(small_set):
    sheet = np.asarray(contact_sheet(small_set, pairs_per_split=1)).astype(int)
    top, left = GAP + CAPTION, GAP + TILE + GAP
    class_map = sheet[top + PANORAMA[1] : top + 2 * PANORAMA[1], left : left + PANORAMA[0]]
    assert (class_map == PALETTE[0]).all()
    photo = sheet[top : top + PANORAMA[1], left : left + PANORAMA[0]]
    assert photo.std() > 10


def test_a_damaged_set_is_one_sentence(small_set, tmp_path):
    broken = shutil.copytree(small_set, tmp_path / "broken")
    for tar in broken.rglob("*.tar"):
        tar.write_bytes(tar.read_bytes()[:600])
    with pytest.raises(ShardError, match="smdt shards verify"):
        contact_sheet(broken)
