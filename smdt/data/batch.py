"""The batches of a step: decoded images and their index columns."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.base.errors import DataError
from smdt.data.distinct_places import Ids
from smdt.data.order import DataState
from smdt.data.pipeline import Decoder, Images, require_dali
from smdt.data.quarantine import QuarantineLine
from smdt.data.reader import Reader
from smdt.data.split import Split


@dataclass(frozen=True)
class Batch:
    """A rank's share of a global batch, B samples."""

    epoch: int
    index: int
    """Number of the global batch in the epoch."""
    sample_ids: Ids
    """int64 [B], ids of the samples that were read, replacements included."""
    shown: Ids
    """int64 [B, S], places that each sample belongs to, its own first; -1 is padding
    (`Split.shown`)."""
    images: Mapping[str, Images]
    """By view: uint8 [B, H, W, 3] on the device, or B of [H, W, 3] where sizes differ; `seg` has
    one channel."""
    heading_deg: NDArray[np.float64]
    """[B], of the panorama's centre column, clockwise from north; here and below NaN is unknown."""
    extent_m: NDArray[np.float64]
    """[B], the aerial tile's side on the ground."""
    elevation_min: NDArray[np.float64]
    """[B], of the panorama's bottom edge, degrees."""
    elevation_max: NDArray[np.float64]
    """[B], of the panorama's top edge, degrees."""
    state: DataState
    """After this global batch: what a checkpoint saves."""
    replaced: Sequence[QuarantineLine] = ()
    """Samples of the batch that were replaced."""


@dataclass(frozen=True)
class EncodedSample:
    """A sample's checked bytes by view."""

    sample_id: int
    images: Mapping[str, bytes]
    replaced: Sequence[QuarantineLine] = ()
    """The samples that it replaces: the one of the order, then every replacement that failed."""

    @classmethod
    def read(cls, reader: Reader, sample_id: int, views: Sequence[str]) -> "EncodedSample":
        """Read every view.

        Raises:
            DamagedPart: of the first view that is damaged.
            DataError: the storage cannot be read.
        """
        return cls(sample_id, {view: reader.read(sample_id, view) for view in views})


class BatchDecoder:
    """Turns encoded samples of a split into batches on a device.

    Args:
        split: where the samples are from.
        views: what a batch holds.
        batch: the most samples of a batch.
        device: where the images end up; a GPU also decodes them.
        threads: that decode.

    Attributes:
        concurrency: how many threads may call `make` at the same time. Two on a CPU: where one
            batch waits for its last image, the cores decode the next.

    Raises:
        InputError: DALI is not installed.
    """

    def __init__(
        self, split: Split, views: Sequence[str], batch: int, device: torch.device, threads: int
    ) -> None:
        require_dali()
        self._split = split
        self._views = tuple(views)
        self._local = threading.local()
        if device.type == "cuda":
            gpu = torch.cuda.current_device() if device.index is None else device.index
            self.concurrency = 1
            self._new_decoder = partial(Decoder, views, batch, "gpu", gpu, threads)
        else:
            self.concurrency = min(2, threads)
            each = threads // self.concurrency
            self._new_decoder = partial(Decoder, views, batch, "cpu", None, each)

    def make(self, samples: Sequence[EncodedSample], index: int, state: DataState) -> Batch:
        """Decode the samples into the batch with this number.

        Raises:
            DataError: an image does not decode; names the samples.
        """
        encoded = {view: [sample.images[view] for sample in samples] for view in self._views}
        decoder = self._decoder()
        try:
            images = decoder.decode(encoded)
        except RuntimeError as error:
            keys = ", ".join(self._split.key(sample.sample_id) for sample in samples)
            raise DataError(f"An image of these samples does not decode: {keys}.") from error
        ids = np.array([sample.sample_id for sample in samples], dtype=np.int64)
        return Batch(
            epoch=state.epoch,
            index=index,
            sample_ids=ids,
            shown=self._split.shown(ids),
            images=images,
            heading_deg=self._split.column("heading")[ids],
            extent_m=self._split.column("extent_m")[ids],
            elevation_min=self._split.column("elevation_min")[ids],
            elevation_max=self._split.column("elevation_max")[ids],
            state=state,
            replaced=[line for sample in samples for line in sample.replaced],
        )

    def _decoder(self) -> Decoder:
        """The decoder of this thread."""
        if not hasattr(self._local, "decoder"):
            self._local.decoder = self._new_decoder()
        decoder: Decoder = self._local.decoder
        return decoder
