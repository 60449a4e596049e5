"""Every change that we make to the inside of DeepSpeed and of `torch.distributed`.

Each says why, and where upstream discusses it, if anywhere. `test_patches.py` fails when what a
patch relies on is gone. They were written for the versions in `WRITTEN_FOR`; another one is warned
of once.
"""

import contextlib
import functools
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

WRITTEN_FOR = {"deepspeed": ("0.19",), "torch": ("2.11", "2.12", "2.13", "2.14")}
"""Major and minor versions of each package."""

COLLECTIVES = (
    *("all_reduce", "reduce", "broadcast", "barrier", "all_gather", "all_gather_into_tensor"),
    *("all_gather_single", "reduce_scatter", "reduce_scatter_tensor", "reduce_scatter_single"),
    *("all_to_all", "all_to_all_single"),
)
"""Functions of `torch.distributed` that the stages and DeepSpeed call, if this PyTorch has them."""

_log = logging.getLogger(__name__)


@functools.cache
def warn_of_other_versions() -> None:
    """Log a warning for each package whose version these patches were not written for; once."""
    for package, series in WRITTEN_FOR.items():
        found = version(package)
        if ".".join(found.split(".")[:2]) not in series:
            _log.warning(
                "%s %s is installed, and the patches of it were written for %s: if training "
                "fails or differs, install one of these",
                package,
                found,
                ", ".join(series),
            )


def skip_shared_memory_kernel() -> None:
    """Keep DeepSpeed from building its shared-memory all-reduce.

    It serves inference only, and building it takes a compiler and minutes
    (https://github.com/deepspeedai/DeepSpeed/issues/7108).
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed calls collectives by names that torch has deprecated.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


def limit_new_groups(timeout: timedelta) -> None:
    """Give every process group that is made from now on this timeout.

    ZeRO makes groups of its own without one, which would keep torch's 30 minutes
    (https://github.com/deepspeedai/DeepSpeed/issues/2927).
    """
    dist.new_group = functools.partial(dist.new_group, timeout=timeout)


def wrap_collectives(wrap: Callable[[Callable[..., Any]], Callable[..., object]]) -> None:
    """Put `wrap` around every collective of `torch.distributed`; before DeepSpeed is imported."""
    for name in COLLECTIVES:
        if hasattr(dist, name):
            setattr(dist, name, wrap(getattr(dist, name)))


def find_infinities_by_norm(optimizer: Any) -> None:  # noqa: ANN401 (DeepSpeed has no types)
    """Have DeepSpeed see by the gradients' norm alone that one of them is not finite.

    It looks into every gradient first, with a dozen kernels for each, and without ZeRO it waits
    for each: more than half of a step's kernels. The norm, which it then looks at, tells as
    much, and the same to all ranks (https://github.com/deepspeedai/DeepSpeed/pull/5115).
    """
    if hasattr(optimizer, "overflow_checker"):  # without ZeRO
        optimizer.overflow_checker.check = lambda: False
    elif hasattr(optimizer, "check_overflow") and getattr(optimizer, "compute_grad_norm", True):
        optimizer.check_overflow = lambda **_: None


def flatten_without_copy(optimizer: Any) -> None:  # noqa: ANN401
    """Have ZeRO 3 take a rank's gradients, which lie in one buffer, as they are: no copy."""
    if hasattr(optimizer, "grad_partitions_flat_buffer"):
        optimizer.flatten = flatten


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Return the values of tensors in one flat tensor; a view if they are contiguous.

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


@contextlib.contextmanager
def padding_kept() -> Iterator[None]:
    """Keep DeepSpeed from cutting off padding, which the conversion passes over anyway.

    The last rank is told the padding of a whole parameter group, though ranks before it may hold
    some: with a small group and many ranks it then cuts off more than it has
    (https://github.com/deepspeedai/DeepSpeed/pull/6974).
    """
    from deepspeed.checkpoint.zero_checkpoint import ZeROCheckpoint

    strip = ZeROCheckpoint._strip_tensor_paddings
    ZeROCheckpoint._strip_tensor_paddings = lambda *_: None
    try:
        yield
    finally:
        ZeROCheckpoint._strip_tensor_paddings = strip


def add_empty_fragments(optimizer: Any) -> None:  # noqa: ANN401 (DeepSpeed has no types)
    """Let a rank whose part of a parameter group is all padding load the universal form too.

    DeepSpeed takes the number of steps from the group's first parameter on this rank, and fails
    where there is none. Nothing of one is as good. ZeRO 3 has no such groups.
    """
    from deepspeed.utils.tensor_fragment import fragment_address, tensor_fragment

    nothing = fragment_address(numel=0, start=0)
    parts = zip(
        getattr(optimizer, "bit16_groups", ()),
        getattr(optimizer, "single_partition_of_fp32_groups", ()),
        strict=True,
    )
    for index, (group, part) in enumerate(parts):
        if all(parameter._hp_mapping is None for parameter in group):
            group[0]._hp_mapping = tensor_fragment(
                lp_fragment=group[0].flatten()[:0],
                lp_fragment_address=nothing,
                hp_fragment=part[:0],
                hp_fragment_address=nothing,
                gradient_dict={},
                offload_gradient_dict={},
                use_offload=False,
                param_group_index=index,
            )
