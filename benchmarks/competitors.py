"""Input pipelines as others write them, for `benchmarks.input_pipeline`.

Each gives batches of ground and aerial panoramas, float32 [B, 3, 128, 512], with cv2.remap for the
mapping.
"""

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import webdataset
from numpy.typing import NDArray
from nvidia.dali import fn
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import pipeline_def
from nvidia.dali.types import DALIDataType
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.mapping import HEIGHT, WIDTH, positions
from data_shards.format import layout

BATCH = 16
WORKERS = 2

Loader = DataLoader[tuple[Tensor, Tensor]]


class Remap:
    """OpenCV's mapping of tiles of one side."""

    def __init__(self, side: int) -> None:
        self._x, self._y = (values.astype(np.float32) for values in positions("mixed", side))

    def __call__(self, tile: NDArray[np.uint8]) -> Tensor:
        """Map uint8 [S, S, 3] to [3, H, W]."""
        return _channels_first(cv2.remap(tile, self._x, self._y, cv2.INTER_LINEAR))


def _channels_first(image: NDArray[Any]) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).float().contiguous()


class PillowPairs(Dataset[tuple[Tensor, Tensor]]):
    """A folder of image files, with Pillow and OpenCV."""

    def __init__(self, folder: Path, pairs: int, side: int) -> None:
        self._folder = folder
        self._pairs = pairs
        self._remap = Remap(side)

    def __len__(self) -> int:
        return self._pairs

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        ground = (self._folder / f"ground{row}.jpg").read_bytes()
        return self.tensors(ground, (self._folder / f"aerial{row}.jpg").read_bytes())

    def tensors(self, ground: bytes, aerial: bytes) -> tuple[Tensor, Tensor]:
        """Decode, resize and map."""
        panorama = Image.open(BytesIO(ground)).convert("RGB")
        resized = panorama.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
        tile = np.array(Image.open(BytesIO(aerial)).convert("RGB"))
        return _channels_first(np.array(resized)), self._remap(tile)

    def tensors_of_sample(self, sample: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The same for a sample of webdataset."""
        return self.tensors(sample["ground.jpg"], sample["aerial.jpg"])


def _start_worker(_: int) -> None:
    cv2.setNumThreads(1)


def _loader(dataset: Dataset[tuple[Tensor, Tensor]], *, shuffle: bool) -> Loader:
    return DataLoader(
        dataset,
        BATCH,
        shuffle=shuffle,
        num_workers=WORKERS,
        persistent_workers=True,
        multiprocessing_context="forkserver",
        worker_init_fn=_start_worker,
    )


def folder_loader(folder: Path, pairs: int, side: int) -> Loader:
    """Image folder, Pillow, cv2.remap, DataLoader."""
    return _loader(PillowPairs(folder, pairs, side), shuffle=True)


def tar_loader(shards: Path, count: int, side: int) -> Loader:
    """The same from tars, read in order by webdataset."""
    tars = [str(layout.tar_path(shards, "train", shard)) for shard in range(count)]
    pairs = PillowPairs(shards, 0, side)
    return _loader(
        webdataset.WebDataset(tars, shardshuffle=False).map(pairs.tensors_of_sample), shuffle=False
    )


@pipeline_def
def _dali_graph(shards: Path, count: int) -> tuple[DataNode, DataNode]:
    parts: Any = fn.readers.webdataset(
        paths=[str(layout.tar_path(shards, "train", shard)) for shard in range(count)],
        index_paths=[str(layout.idx_path(shards, "train", shard)) for shard in range(count)],
        ext=["ground.jpg", "aerial.jpg"],
        missing_component_behavior="error",
    )
    ground, aerial = parts
    resized: Any = fn.resize(fn.decoders.image(ground), size=(HEIGHT, WIDTH), antialias=True)
    floats = fn.crop_mirror_normalize(resized, dtype=DALIDataType.FLOAT, output_layout="CHW")
    return floats, fn.decoders.image(aerial)


def dali_batches(
    shards: Path, count: int, batches: int, side: int
) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    """DALI reads, decodes and resizes in 2 threads; the consumer maps, as DALI's CPU can't."""
    graph: Any = _dali_graph(
        shards, count, batch_size=BATCH, num_threads=WORKERS, device_id=None, exec_dynamic=True
    )
    graph.build()
    remap = Remap(side)

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(batches):
            ground, aerial = graph.run()
            tiles = [remap(np.asarray(aerial.at(i))) for i in range(BATCH)]
            yield torch.from_numpy(ground.as_array()), torch.stack(tiles)

    return epoch
