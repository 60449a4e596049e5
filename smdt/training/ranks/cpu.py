"""CPU threads and memory of a rank that trains on CPUs."""

import ctypes
import os
import time

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Parameters of glibc's mallopt(3)."""
_LARGEST = 2**31 - 1
"""Bytes: as much as mallopt takes."""


def set_thread_count() -> None:
    """Give each rank of this machine an equal part of the cores, unless OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" not in os.environ:
        ranks_here = int(os.environ.get("LOCAL_SIZE", "1"))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))


def emulates_bf16() -> bool:
    """Return whether products in bf16 take this machine's CPU many times those in fp32.

    Without AVX-512 or AMX they are 50 times slower. Measured, in about 0.2 s, since it depends on
    the CPU and on what PyTorch was built with: in CPU time of one thread, since threads that wait
    for each other on a busy machine make fp32 look slow.
    """

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(256, 256, dtype=dtype)
        measured = []
        for _ in range(5):
            start = time.thread_time()
            matrix @ matrix
            measured.append(time.thread_time() - start)
        return min(measured)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return seconds(torch.bfloat16) > 4 * seconds(torch.float32)
    finally:
        torch.set_num_threads(threads)


def keep_freed_memory() -> None:
    """Let this process use freed memory again instead of giving it back to the kernel.

    glibc maps new memory for each large tensor, and the kernel zeroes its pages at first touch: a
    training step frees and allocates the same tensors again and again, and so do the threads that
    decode, whose own heaps are too small for a batch. Values of `MALLOC_MMAP_THRESHOLD_`,
    `MALLOC_TRIM_THRESHOLD_` and `MALLOC_ARENA_MAX` are kept; other C libraries are not changed.
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
