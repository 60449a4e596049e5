"""Environment of a run: versions, commit, machine, ranks."""

import os
import platform
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from smdt.training.deepspeed.settings import Precision


def hosts_of_ranks() -> list[str]:
    """Return the host of each rank; every rank calls it."""
    hosts = [""] * dist.get_world_size()
    dist.all_gather_object(hosts, socket.gethostname())
    return hosts


def versions() -> dict[str, Any]:
    """Return what code runs here: versions of Python and of packages, and our commit."""
    packages = ("smdt", "torch", "deepspeed", "nvidia-dali-cuda130", "webdataset", "numpy")
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "commit": _commit() or os.environ.get("SMDT_COMMIT") or None,
    }


def _commit() -> str:
    """The commit that has this file; empty where none has it, or without git."""
    command = ["git", "rev-parse", f"HEAD:./{Path(__file__).name}", "HEAD"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.split()[-1] if done.returncode == 0 else ""


def environment(hosts: Sequence[str], device: str) -> dict[str, Any]:
    """Return the environment of a run: versions, commit, machines.

    Args:
        hosts: of each rank.
        device: kind of device that the ranks train on, such as `cuda`.
    """
    return {
        **versions(),
        "hosts": list(hosts),
        "world_size": len(hosts),
        "device": device,
        "threads": torch.get_num_threads(),
        "command": sys.argv,
    }


def run_info(
    device: torch.device, precision: Precision, zero_stage: int, global_batch: int
) -> dict[str, str]:
    """Return the labels of a run's info metric, without secrets."""
    return {
        **{name: version(name) for name in ("smdt", "torch", "deepspeed")},
        "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "precision": precision,
        "zero": str(zero_stage),
        "world_size": str(dist.get_world_size()),
        "global_batch": str(global_batch),
    }
