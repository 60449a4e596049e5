"""Networks whose weights are in half precision and whose buffers are not.

DeepSpeed leaves buffers in fp32: rotary angles, masks, filters and tables of positions.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from smdt.models.batch_norm import FixedBatchNorm


def computes_with_buffers(network: nn.Module) -> bool:
    """Return whether a network has floating-point buffers, but those of fixed batch norms."""
    return any(
        buffer.is_floating_point()
        for part in network.modules()
        if not isinstance(part, FixedBatchNorm)
        for buffer in part.buffers(recurse=False)
    )


def casting(images: Tensor, wanted: bool) -> AbstractContextManager[object]:
    """Make products of mixed dtypes in the images' dtype where that is wanted and not fp32."""
    if not wanted or images.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(images.device.type, images.dtype)
