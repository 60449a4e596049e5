"""Many tensors as one."""

from collections.abc import Sequence

import torch
from torch import Tensor


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Return the values of tensors one after another: the same memory, if they lie so already.

    Args:
        tensors: of one dtype and device, at least one.

    Returns:
        [total number of values]; a view of their memory, or a copy if it has gaps.
    """
    first = tensors[0]
    end = first.data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != end or not tensor.is_contiguous() or not _share(first, tensor):
            return torch.cat([each.reshape(-1) for each in tensors])
        end += tensor.nbytes
    total = sum(tensor.numel() for tensor in tensors)
    return first.as_strided((total,), (1,), first.storage_offset())


def _share(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
