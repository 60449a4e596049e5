import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from smdt.training.processor import emulates_bf16

PAGES = """
import resource
from threading import Thread
import torch
from smdt.training.processor import keep_freed_memory
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


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86")
def test_a_cpu_without_instructions_for_bf16_and_without_avx_512_emulates_it():
    flags = set(Path("/proc/cpuinfo").read_text().split())
    if flags & {"avx512_bf16", "amx_bf16"}:
        assert not emulates_bf16()
    elif "avx512bw" not in flags:
        assert emulates_bf16()
