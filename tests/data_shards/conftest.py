"""A small data set of real JPEG bytes, as a source in memory and as a folder on disk."""

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.build.dataset import build
from data_shards.format.plan import BuildOptions
from data_shards.format.sample import Meta, RejectedSample, Sample
from data_shards.sources.source import SplitPlan

GROUND = (32, 96)
AERIAL = (48, 48)


def encode(array, file_format="JPEG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, file_format)
    return buffer.getvalue()


def smooth(height, width, seed):
    """A picture that JPEG keeps: a coarse random one, enlarged."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


@dataclass
class MemorySource:
    """Pairs made on the fly; rows in `rejected` can't be used; every second has a class map."""

    rows: dict = field(default_factory=lambda: {"train": 10, "val": 4})
    rejected: frozenset = frozenset()
    name: str = "memory"

    @property
    def splits(self):
        return {split: SplitPlan("pairs", rows) for split, rows in self.rows.items()}

    def options(self):
        return {"rows": dict(self.rows)}

    def sample(self, split, row):
        if row in self.rejected:
            raise RejectedSample("missing_file", f"{split}/{row}.jpg does not exist.")
        seed = row + 1000 * len(split)
        parts = {
            "ground.jpg": encode(smooth(*GROUND, seed)),
            "aerial.png": encode(smooth(*AERIAL, seed + 1), "PNG"),
        }
        if row % 2 == 0:
            labels = np.full(GROUND, row % 6, dtype=np.uint8)
            parts["seg.png"] = encode(labels, "PNG")
        meta = Meta(f"{split}/a.b.{row}", lat=50.0 + row, lon=8.0, heading=0.0, extent_m=100.0)
        return Sample(meta, parts)


@pytest.fixture
def memory_source():
    return MemorySource


@pytest.fixture(scope="session")
def small_set(tmp_path_factory):
    """A finished data set of two splits in shards of four; read only."""
    root = tmp_path_factory.mktemp("small") / "set"
    build(MemorySource(rejected=frozenset({2})), root, BuildOptions(samples_per_shard=4), workers=1)
    return root


def write_folder(root: Path, rows: int, size: int = 64) -> Path:
    """Raw pairs in the `folder` layout, with one missing file and one truncated image."""
    root.mkdir(parents=True)
    lines = ["ground,aerial,lat,lon"]
    for row in range(rows):
        for view, shape in (("g", (size // 2, 2 * size)), ("a", (size, size))):
            (root / f"{view}{row}.jpg").write_bytes(encode(smooth(*shape, row)))
        lines.append(f"g{row}.jpg,a{row}.jpg,{row % 80},{row % 7}")
    (root / "a1.jpg").unlink()
    (root / "g3.jpg").write_bytes((root / "g3.jpg").read_bytes()[:-200])
    (root / "train.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "raw", 12)


@pytest.fixture
def make_folder():
    return write_folder


@pytest.fixture
def make_jpeg():
    return lambda height, width, seed=0: encode(smooth(height, width, seed))


@pytest.fixture
def make_png():
    return lambda array: encode(array, "PNG")


def files_of(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def read_files():
    """All files below a folder: name -> bytes."""
    return files_of
