"""Tensors and lists of all ranks in one, in rank order."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def all_gather_rows(own: Tensor) -> Tensor:
    """Concatenate every rank's rows, of which all have as many; all ranks call it. No gradient.

    Args:
        own: this rank's rows [n, ...], the same shape on all ranks.

    Returns:
        [W n, ...], the rows of rank 0 first. A copy of `own` without a process group.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return own.clone()
    gathered = own.new_empty(dist.get_world_size() * len(own), *own.shape[1:])
    # PyTorch 2.11 knows only the function's older name, of which the newer ones warn.
    newer = hasattr(dist, "all_gather_single")
    gather = dist.all_gather_single if newer else dist.all_gather_into_tensor
    gather(gathered, own.contiguous())
    return gathered


def all_gather_lists(own: list[T]) -> list[T]:
    """Concatenate every rank's list; all ranks call it and get the same. For a few small things."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return own.copy()
    everyone: list[list[T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, own)
    return [each for part in everyone for each in part]


def all_gather_ragged(own: Tensor) -> Tensor:
    """Concatenate every rank's rows; all ranks call it and get the same. No gradient passes.

    Args:
        own: this rank's rows [n, ...]; n may differ between ranks, the rest may not.

    Returns:
        The rows of rank 0, then of rank 1, and so on, held once. A copy of `own` without a process
        group.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return own.clone()
    counts = _counts(own)
    gathered = own.new_empty(sum(counts), *own.shape[1:])
    for rank, (count, end) in enumerate(zip(counts, accumulate(counts), strict=True)):
        piece = gathered[end - count : end]
        if rank == dist.get_rank():
            piece.copy_(own)
        _broadcast(piece, rank)
    return gathered


def pieces(*own: Tensor) -> Iterator[Sequence[Tensor]]:
    """Yield every rank's rows, rank 0's first, one rank's at a time; all ranks go through all.

    What all ranks have together is never held at once. No gradient passes.

    Args:
        own: tensors of this rank [n, ...]; n may differ between ranks, the rest may not.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        yield own
        return
    for rank, count in enumerate(_counts(own[0])):
        here = rank == dist.get_rank()
        piece = [
            (each if here else each.new_empty(count, *each.shape[1:])).contiguous() for each in own
        ]
        for each in piece:
            _broadcast(each, rank)
        yield piece


def _counts(own: Tensor) -> list[int]:
    """Return the number of rows of each rank."""
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=own.device)
    counts[dist.get_rank()] = len(own)
    dist.all_reduce(counts)
    found: list[int] = counts.tolist()
    return found


def _broadcast(rows: Tensor, rank: int) -> None:
    if rows.numel():
        dist.broadcast(rows, src=rank)
