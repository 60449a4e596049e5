"""A gallery on disk: the descriptors of a split's aerial images, and where these are.

G gallery items, D descriptor: of the towers, as many of them side by side as there are turns.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from data_shards.base.atomic import is_leftover, write_atomic
from data_shards.base.errors import InputError
from data_shards.base.store import names, require_local
from smdt.data.split import Split
from smdt.training.checkpoints.run_folder import write_json

FORMAT = 1
DESCRIPTION = "gallery.json"
DESCRIPTORS = "descriptors.safetensors"
PLACES = "places.parquet"
TENSOR = "descriptors"
COLUMNS = ("lat", "lon", "utm_e", "utm_n", "extent_m")


@dataclass(frozen=True)
class GalleryManifest:
    """Provenance and shape of a gallery.

    Attributes:
        checkpoint: folder of the weights that made the descriptors.
        weights_sha256: of these weights.
        shards: folder or URL of the data set.
        split: of it.
        manifest_hash: of it.
        elevation_deg: of the bottom and the top of the split's panoramas, where it has any.
        turns: at which each aerial image was embedded, at even distances around the circle.
        format: of the folder.
    """

    checkpoint: str
    weights_sha256: str
    shards: str
    split: str
    manifest_hash: str
    elevation_deg: tuple[float, float] | None = None
    turns: int = 1
    format: int = FORMAT

    def claim(self, folder: Path) -> None:
        """Start a gallery in a folder, or resume it.

        Raises:
            InputError: another one or something else is there, or the folder can't be written.
        """
        require_local(folder, "--out")
        if (folder / DESCRIPTION).exists():
            there = replace(GalleryManifest.load(folder), checkpoint=self.checkpoint)
            if there != self:
                raise InputError(
                    f"--out {folder} is a gallery of split {there.split} of {there.shards}, made "
                    "from other data or with other weights or turns: name another folder"
                )
            return
        others = [name for name in names(folder) if not is_leftover(name)]
        if others and not (folder / DESCRIPTION).exists():  # another rank may just have made it
            raise InputError(
                f"--out {folder} is not empty ({others[0]}) and not a gallery: name a new folder"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / DESCRIPTION, asdict(self))
        except OSError as error:
            raise InputError(f"--out {folder} can't be written: {error.strerror}") from None

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `claim` wrote.

        Raises:
            InputError: there is nothing, or nothing that this code can read.
        """
        path = folder / DESCRIPTION
        try:
            content: dict[str, Any] = json.loads(path.read_text())
            if content["format"] > FORMAT:
                raise InputError(
                    f"{path} has format {content['format']}, and this version reads {FORMAT}: "
                    "use a newer smdt, or run `smdt embed` again"
                )
            edges = content.pop("elevation_deg")
            return cls(**content, elevation_deg=None if edges is None else (edges[0], edges[1]))
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; make it with `smdt embed`") from None
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} is not a gallery manifest: {error!r}") from None


@dataclass(frozen=True)
class Gallery:
    """A gallery of descriptors for photo searches.

    Attributes:
        described: what it is of.
        descriptors: fp32 [G, D], L2-normalised, on the CPU.
        places: G rows: `key`, `source_id`, latitude, longitude, UTM easting and northing, side of
            the tile in metres; NaN is unknown.
    """

    described: GalleryManifest
    descriptors: Tensor
    places: pa.Table

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read a finished gallery.

        Raises:
            InputError: there is none, or it is damaged.
        """
        described = GalleryManifest.load(folder)
        if not (folder / DESCRIPTORS).exists():
            raise InputError(
                f"gallery {folder} is not finished: start its `smdt embed` again to resume"
            )
        try:
            with safe_open(folder / DESCRIPTORS, framework="pt") as file:
                descriptors: Tensor = file.get_tensor(TENSOR)
            places = pq.read_table(folder / PLACES)
        except (OSError, SafetensorError, pa.ArrowException) as error:
            raise InputError(f"gallery {folder}: {error}; make it again") from error
        if len(descriptors) != len(places):
            raise InputError(
                f"gallery {folder} has {len(descriptors)} descriptors of {len(places)} places: "
                "make it again"
            )
        return cls(described, descriptors, places)

    def place(self, item: int) -> dict[str, Any]:
        """Return what is known of an item's place; what is not is None."""
        row: dict[str, Any] = self.places.slice(item, 1).to_pylist()[0]
        return {k: None if v != v else v for k, v in row.items()}


def places_of(split: Split, sample_ids: NDArray[np.int64]) -> pa.Table:
    """Return the rows of `Gallery.places` for some samples of a split."""
    keys, sources = split.names("key"), split.names("source_id")
    names = {
        "key": [keys[i] for i in sample_ids],
        "source_id": [sources[i] for i in sample_ids],
    }
    return pa.table(names | {name: split.column(name)[sample_ids] for name in COLUMNS})


def write_gallery(folder: Path, descriptors: Tensor, places: pa.Table) -> None:
    """Finish a gallery; descriptors are written last and mark it as complete."""
    sink = pa.BufferOutputStream()
    pq.write_table(places, sink)
    write_atomic(folder / PLACES, sink.getvalue().to_pybytes())
    write_atomic(folder / DESCRIPTORS, save({TENSOR: descriptors.contiguous()}))
