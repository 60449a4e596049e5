"""Small copies of the published data sets, in their own layouts, of pictures made up."""

from pathlib import Path

import numpy as np
from scipy.io import savemat

from data_shards.sources.vigor import CITIES
from tests.pictures import encoded, picture

PAIRS = 4
"""Of a training split, at least."""


def jpeg(seed: int, height: int, width: int) -> bytes:
    return encoded(picture(seed, height, width), "JPEG")


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_cvusa(root: Path, train: int = PAIRS, val: int = 2) -> None:
    """CVUSA with coordinates, without annotations."""
    for split, ids in (("train", range(1, 1 + train)), ("val", range(1 + train, 1 + train + val))):
        lines = []
        for i in ids:
            write(root / f"bingmap/19/{i:07d}.jpg", jpeg(i, 96, 96))
            write(root / f"streetview/panos/{i:07d}.jpg", jpeg(100 + i, 56, 308))
            annotation = f"streetview/annotations/{i:07d}.png"
            lines.append(f"bingmap/19/{i:07d}.jpg,streetview/panos/{i:07d}.jpg,{annotation}\n")
        write(root / f"splits/{split}-19zl.csv", "".join(lines))
    places = [f"{40 + 0.01 * i},{-80 - 0.01 * i},0,0,0\n" for i in range(train + val)]
    write(root / "split_locations/all.csv", "".join(places))


def write_cvact(root: Path) -> None:
    """CVACT: 4 pairs for training, 2 for evaluation, 2 more in the large test set."""
    count = PAIRS + 4
    ids = [f"{i:022d}" for i in range(count)]
    for i, pano_id in enumerate(ids):
        folder = root / ("ANU_data_small" if i < PAIRS + 2 else "ANU_data_test")
        write(folder / f"streetview/{pano_id}_grdView.jpg", jpeg(i, 832, 1664))
        write(folder / f"satview_polish/{pano_id}_satView_polish.jpg", jpeg(100 + i, 96, 96))
    utm = np.array([[696000 + 100 * i, 6093000] for i in range(count)], dtype=np.float64)

    def rows(start: int, stop: int) -> np.ndarray:
        return np.arange(start + 1, stop + 1, dtype=np.float64).reshape(-1, 1)

    savemat(
        root / "ACT_data.mat",
        {
            "panoIds": np.array(ids),
            "utm": utm,
            "trainSet": {"trainUtm": utm[:1], "trainInd": rows(0, PAIRS)},
            "valSet": {"valUtm": utm[:1], "valInd": rows(PAIRS, PAIRS + 2)},
            "valSetAll": {"valUtm": utm[:1], "valInd": rows(PAIRS, count)},
        },
    )


def write_vigor(root: Path) -> None:
    """VIGOR: in each city 5 tiles, 2 panoramas for training and 2 for the test."""
    for c, city in enumerate(CITIES):
        tiles = [f"satellite_{40 + c}.{n}_-87.{n}.png" for n in range(5)]
        for n, tile in enumerate(tiles):
            write(root / city / "satellite" / tile, encoded(picture(10 * c + n, 96, 96), "PNG"))
        write(root / f"splits/{city}/satellite_list.txt", "\n".join(tiles))
        lines = []
        for n, near in enumerate([(1, 0, 2, 3), (2, 1, 0, 3), (4, 3, 2, 1), (0, 1, 2, 3)]):
            panorama = f"{city[:2]}-_{n},{40 + c}.25{n},-87.6,.jpg"
            write(root / city / "panorama" / panorama, jpeg(100 + 10 * c + n, 64, 128))
            lines.append(" ".join([panorama, *(f"{tiles[t]} {10.0 * t} -7.0" for t in near)]))
        for name, chosen in (
            ("same_area_balanced_train", lines[:2]),
            ("same_area_balanced_test", lines[2:]),
            ("pano_label_balanced", lines),
        ):
            write(root / f"splits/{city}/{name}.txt", "\n".join(chosen))


WRITERS = {"cvusa": write_cvusa, "cvact": write_cvact, "vigor": write_vigor}
