"""Small real shards of random JPEGs, built once, and a loader over them."""

import shutil
import threading
from collections.abc import Callable
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from data_shards.build.dataset import build
from data_shards.format.plan import BuildOptions
from data_shards.format.sample import Meta, Sample
from data_shards.sources.source import SplitPlan
from smdt.data.evaluation_loader import EvaluationLoader
from smdt.data.loader import DataConfig, TrainLoader
from smdt.data.order import DataState
from smdt.data.split import Split
from smdt.telemetry.metrics import TrainingMetrics

TRAIN_SAMPLES = 60
SAMPLES_PER_SHARD = 20


class RandomPictures:
    """Pairs of random pictures: two samples of `train` share a place, every tenth has none."""

    name = "random"
    splits: ClassVar = {
        "train": SplitPlan("pairs", TRAIN_SAMPLES),
        "val": SplitPlan("pairs", 23),
        "gallery": SplitPlan("aerial", 5),
    }

    def sample(self, split: str, row: int) -> Sample:
        place = None if row % 10 == 9 else float(row // 2)
        meta = Meta(
            source_id=f"{split}.{row}",
            lat=place,
            lon=place,
            heading=float(row),
            extent_m=100.0 if row % 2 else None,
            elevation=(-30.0, 40.0),
        )
        parts = {"aerial.jpg": jpeg(split, row, 64, 64)}
        if split != "gallery":
            parts["ground.jpg"] = jpeg(split, row + 1000, 32, 96)
        return Sample(meta, parts)

    def options(self) -> dict[str, object]:
        return {}


class OtherPictures(RandomPictures):
    """The same places with other pictures."""

    def sample(self, split: str, row: int) -> Sample:
        sample = super().sample(split, row)
        return Sample(sample.meta, super().sample(split, row + TRAIN_SAMPLES).parts)

    def options(self) -> dict[str, object]:
        return {"other": True}


def jpeg(split: str, number: int, height: int, width: int) -> bytes:
    rng = np.random.default_rng([len(split), number])
    out = BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """A finished data set that no test changes."""
    root = tmp_path_factory.mktemp("shards") / "random"
    build(RandomPictures(), root, BuildOptions(samples_per_shard=SAMPLES_PER_SHARD), workers=1)
    return root


@pytest.fixture
def other_pictures() -> OtherPictures:
    """A source of a data set that differs from `built`."""
    return OtherPictures()


@pytest.fixture
def shards(built, tmp_path) -> Path:
    """A copy that the test may damage."""
    return Path(shutil.copytree(built, tmp_path / "shards"))


@pytest.fixture
def pixels() -> Callable[[str, int], dict[str, np.ndarray]]:
    """What PIL makes of a sample's original bytes, by view."""

    def of(split: str, row: int) -> dict[str, np.ndarray]:
        parts = RandomPictures().sample(split, row).parts
        return {
            name.split(".")[0]: np.asarray(Image.open(BytesIO(image)))
            for name, image in parts.items()
        }

    return of


@pytest.fixture
def train(tmp_path) -> Callable[..., TrainLoader]:
    """Make a loader of split `train`; keywords replace the defaults."""

    def make(
        root: Path,
        *,
        rank: int = 0,
        world_size: int = 1,
        global_batch: int = 6,
        seed: int = 3,
        split: str = "train",
        views: tuple[str, ...] = ("ground", "aerial"),
        metrics: TrainingMetrics | None = None,
        **config: object,
    ) -> TrainLoader:
        data = DataConfig(shards=str(root), **config)
        return TrainLoader(
            Split.open(root, split, data.cache),
            data,
            views=views,
            global_batch=global_batch,
            seed=seed,
            rank=rank,
            world_size=world_size,
            device=torch.device("cpu"),
            quarantine=tmp_path / "quarantine.jsonl",
            metrics=metrics or TrainingMetrics("test", "data", rank),
        )

    return make


@pytest.fixture
def evaluation() -> Callable[..., EvaluationLoader]:
    """Make a loader of split `val`; keywords replace the defaults."""

    def make(root: Path, *, split: str = "val", **options: object) -> EvaluationLoader:
        defaults = {"views": ("ground", "aerial"), "batch": 4, "rank": 0, "world_size": 1}
        device = torch.device("cpu")
        return EvaluationLoader(Split.open(root, split), device=device, **(defaults | options))

    return make


@pytest.fixture
def flip_byte() -> Callable[[Split, int, str], None]:
    """Flip one byte in the middle of a part."""

    def flip(split: Split, sample_id: int, part: str) -> None:
        middle = (
            split.column(f"{part}_offset")[sample_id] + split.column(f"{part}_size")[sample_id] // 2
        )
        with split.tar(sample_id).open("r+b") as file:
            file.seek(middle)
            byte = file.read(1)[0]
            file.seek(middle)
            file.write(bytes([byte ^ 1]))

    return flip


@pytest.fixture
def sample_value() -> Callable[..., float]:
    """The sum of a metric's samples that have the labels."""

    def value(registry, name: str, **labels: str) -> float:
        return sum(
            sample.value
            for metric in registry.collect()
            for sample in metric.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    return value


@pytest.fixture
def start() -> Callable[[Path], DataState]:
    """The state of a new run with the seed of `train`."""
    return lambda root: DataState(Split.open(root, "train").manifest_hash, 3, 0, 0)


@pytest.fixture
def ids() -> Callable[..., list[list[int]]]:
    """The sample ids of all batches that follow a state."""

    def of(loader: TrainLoader, state: DataState, epochs: int = 1) -> list[list[int]]:
        with closing(loader.stream(state, epochs)) as batches:
            return [batch.sample_ids.tolist() for batch in batches]

    return of


@pytest.fixture
def data_threads() -> Callable[[], list[str]]:
    """The names of the threads that the data plane runs now."""
    return lambda: [t.name for t in threading.enumerate() if t.name.startswith("smdt-")]


@pytest.fixture
def raising() -> Callable[[Exception], Callable[..., None]]:
    """A function that only raises."""

    def make(error: Exception) -> Callable[..., None]:
        def fail(*_: object) -> None:
            raise error

        return fail

    return make
