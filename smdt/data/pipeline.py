"""Encoded images to uint8 tensors, through DALI.

The graph only decodes. What comes after (resize, mapping, masks) is torch on the training device.
DALI is imported where it is used: that takes half a second, and who only uses a model has no need
of it.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from data_shards.base.packages import require_package

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode
    from nvidia.dali.pipeline import Pipeline
    from nvidia.dali.tensors import TensorListCPU, TensorListGPU

DALI = "nvidia-dali-cuda130>=2.4,<3"
"""What pip installs."""

Device = Literal["cpu", "gpu"]

GREY_VIEWS = frozenset({"seg"})
"""Views whose pixel is a class id: decoded as one channel, so that the ids stay what they are."""

Images = torch.Tensor | Sequence[torch.Tensor]
"""B images: one uint8 [B, H, W, C] tensor where sizes agree, else B of uint8 [H, W, C]."""


def require_dali() -> None:
    """Check that DALI is installed, without importing it.

    Raises:
        InputError: it is not.
    """
    require_package("nvidia.dali", "DALI, which decodes the images of a data set,", DALI)


class Decoder:
    """Decodes batches of JPEG and PNG bytes, a view at a time named.

    On the CPU the pixels are those of libjpeg-turbo, bit for bit PIL's. Not for use from two
    threads at once.

    Args:
        views: the views of every batch, such as ("ground", "aerial").
        batch: the most samples a batch may have.
        device: "cpu", or "gpu" to decode on the GPU and leave the images there.
        device_id: the GPU; None for the CPU.
        threads: that decode at the same time.
    """

    def __init__(
        self,
        views: Sequence[str],
        batch: int,
        device: Device,
        device_id: int | None,
        threads: int,
    ) -> None:
        self._views = tuple(views)
        self._gpu = device_id if device == "gpu" else None
        self._pipeline = decoding_graph(views, batch, device, device_id, threads)

    def decode(self, encoded: Mapping[str, Sequence[bytes]]) -> dict[str, Images]:
        """Decode one batch: for every view the bytes of B images, 1 <= B <= batch.

        The tensors lie in DALI's memory, without a copy, and stay valid as long as they are held.

        Raises:
            RuntimeError: DALI could not decode an image.
        """
        inputs = {
            view: [np.frombuffer(image, dtype=np.uint8) for image in encoded[view]]
            for view in self._views
        }
        # On a GPU the images are ready in the order of the stream, without a wait on the host.
        stream = () if self._gpu is None else (torch.cuda.current_stream(self._gpu),)
        outputs = self._pipeline.run(*stream, **inputs)
        return dict(zip(self._views, map(_as_torch, outputs), strict=True))


def decoding_graph(
    views: Sequence[str],
    batch: int,
    device: Device,
    device_id: int | None,
    threads: int,
) -> "Pipeline":
    """The DALI graph, not yet built: one named input of bytes and one output of pixels a view.

    `exec_dynamic` gives every batch memory of its own; without it, batches that are still held
    would be overwritten.
    """
    from nvidia.dali.pipeline import pipeline_def

    @pipeline_def
    def decode_views() -> "tuple[DataNode, ...]":
        return tuple(_decoded(view, device) for view in views)

    graph: Pipeline = decode_views(
        batch_size=batch,
        num_threads=threads,
        device_id=device_id,
        exec_dynamic=True,
        prefetch_queue_depth=1,
    )
    return graph


def _decoded(view: str, device: Device) -> "DataNode":
    from nvidia.dali import fn
    from nvidia.dali.types import DALIDataType, DALIImageType

    encoded = fn.external_source(name=view, dtype=DALIDataType.UINT8, ndim=1)
    output_type = DALIImageType.GRAY if view in GREY_VIEWS else DALIImageType.RGB
    if device == "cpu":
        return fn.decoders.image(encoded, device="cpu", output_type=output_type)
    # Chroma is upsampled as on the CPU, or the same JPEG would look different to the model.
    return fn.decoders.image(
        encoded, device="mixed", output_type=output_type, jpeg_fancy_upsampling=True
    )


def _as_torch(images: "TensorListCPU | TensorListGPU") -> Images:
    if images.is_dense_tensor():
        return from_dlpack(images.as_tensor())
    return [from_dlpack(images[i]) for i in range(len(images))]
