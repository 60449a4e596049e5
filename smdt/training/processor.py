"""What a rank on CPUs takes of its machine: a part of the cores, and memory that it keeps."""

import ctypes
import os

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Parameters of glibc's mallopt(3)."""
_LARGEST = 2**31 - 1
"""Bytes: as much as mallopt takes."""


def share_cores() -> None:
    """Give each rank of this machine an equal part of the cores, unless told otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        ranks_here = int(os.environ.get("LOCAL_SIZE", "1"))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))


def keep_freed_memory() -> None:
    """Let this process use freed memory again instead of giving it back to the kernel.

    glibc maps each large tensor anew, and the kernel zeroes its pages at first touch: a training
    step frees and allocates the same tensors again and again, and so do the threads that decode,
    whose own heaps are too small for a batch. What `MALLOC_MMAP_THRESHOLD_`,
    `MALLOC_TRIM_THRESHOLD_` or `MALLOC_ARENA_MAX` say stands; another C library is left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    chosen = {
        "MALLOC_MMAP_THRESHOLD_": (_MMAP_THRESHOLD, _LARGEST),
        "MALLOC_TRIM_THRESHOLD_": (_TRIM_THRESHOLD, _LARGEST),
        "MALLOC_ARENA_MAX": (_ARENA_MAX, 1),
    }
    for variable, (parameter, value) in chosen.items():
        if mallopt is not None and variable not in os.environ:
            mallopt(parameter, value)
