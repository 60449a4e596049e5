"""Tensors and lists of all ranks in one, in rank order."""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def gather_equal(own: Tensor) -> Tensor:
    """Concatenate every rank's rows, of which all have as many; all ranks call it. No gradient.

    Args:
        own: this rank's rows [n, ...], the same shape on all ranks.

    Returns:
        [W n, ...], the rows of rank 0 first. A copy of `own` without a process group.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return own.clone()
    gathered = own.new_empty(dist.get_world_size() * len(own), *own.shape[1:])
    dist.all_gather_single(gathered, own.contiguous())
    return gathered


def gather_lists(own: list[T]) -> list[T]:
    """Concatenate every rank's list; all ranks call it and get the same. For a few small things."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return own.copy()
    everyone: list[list[T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, own)
    return [each for part in everyone for each in part]


def gather_ragged(own: Tensor) -> Tensor:
    """Concatenate every rank's rows; all ranks call it and get the same. No gradient passes.

    Args:
        own: this rank's rows [n, ...]; n may differ between ranks, the rest may not.

    Returns:
        The rows of rank 0, then of rank 1, and so on. A copy of `own` without a process group.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return own.clone()
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=own.device)
    counts[dist.get_rank()] = len(own)
    dist.all_reduce(counts)
    longest = int(counts.max())
    padded = own.new_zeros(longest, *own.shape[1:])
    padded[: len(own)] = own
    gathered = own.new_empty(len(counts) * longest, *own.shape[1:])
    dist.all_gather_single(gathered, padded)
    pieces = gathered.view(len(counts), longest, *own.shape[1:])
    return torch.cat([piece[:count] for piece, count in zip(pieces, counts.tolist(), strict=True)])
