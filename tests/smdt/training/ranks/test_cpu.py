import os
import platform
import subprocess
import sys

import pytest
import torch

from smdt.training.ranks.cpu import emulates_bf16

PAGES = """
import resource
from threading import Thread
import torch
from smdt.training.ranks.cpu import keep_freed_memory
{call}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def allocate():
    if not {threads}:
        torch.ones(2**24)
        return
    thread = Thread(target=lambda: torch.ones(2**24))
    thread.start()
    thread.join()
for _ in range(10):  # the heap grows to what is needed
    allocate()
before = faults()
for _ in range(5):
    allocate()
print(faults() - before)
"""
TENSOR = 2**24 * 4 // os.sysconf("SC_PAGE_SIZE")
"""Pages of one tensor."""


def faults(call: str, threads: bool = False, **variables: str) -> int:
    """Page faults of five large tensors after each other, each in a thread of its own or not."""
    script = PAGES.format(call=call, threads=threads)
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_tensors_are_used_again_unless_told_otherwise():
    assert faults("") > 3 * TENSOR
    assert faults("keep_freed_memory()") < TENSOR
    assert faults("keep_freed_memory()", threads=True) < 2 * TENSOR
    assert faults("keep_freed_memory()", threads=True, MALLOC_ARENA_MAX="8") > 3 * TENSOR
    told = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    assert faults("keep_freed_memory()", **told) > 3 * TENSOR


def test_a_cpu_emulates_bf16_where_onednn_has_no_kernels_for_it_busy_or_not():
    spin = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spin) for _ in range(2 * len(os.sched_getaffinity(0)))]
    threads = torch.get_num_threads()
    try:
        found = {emulates_bf16() for _ in range(5)}
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert found == {not torch.ops.mkldnn._is_mkldnn_bf16_supported()}
    assert torch.get_num_threads() == threads
