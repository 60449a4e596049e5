"""Checks of this machine: what is there, what is missing, and how to fix it."""

import ctypes
import json
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

from rich.table import Table
from rich.text import Text

from data_shards.base.atomic import write_atomic
from data_shards.base.errors import InputError, UserError
from data_shards.base.packages import installed_version
from data_shards.base.terminal import Terminal

PACKAGES = ("torch", "webdataset", "pyarrow", "timm")

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (checked, not written to)
ENOUGH_SHARED_BYTES = 2**30
"""Shared memory for gradients between ranks of one machine; containers get 64 MB by default."""


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        subject: what.
        found: what is there.
        cure: what to do; empty if all is well.
        needed: whether nothing works without it.
    """

    subject: str
    found: str
    cure: str = ""
    needed: bool = True


def findings() -> list[Finding]:
    """Check the interpreter, the packages, the accelerator and the tools around them."""
    return [
        _python(),
        *(_package(name) for name in PACKAGES),
        *_training_packages(),
        _machine(),
        _driver(),
        *_accelerators(),
        _decoder(),
        _compiler(),
        _remote_start(),
    ]


def run_doctor(json_file: Path | None) -> None:
    """Print all findings as a table.

    Raises:
        UserError: something that everything needs is missing.
    """
    found = findings()
    table = Table("", "found", "what to do")
    for finding in found:
        colour = "green" if not finding.cure else "red" if finding.needed else "yellow"
        table.add_row(Text(finding.subject, colour), finding.found, finding.cure)
    Terminal().print(table)
    if json_file is not None:
        content = [asdict(finding) for finding in found]
        write_atomic(json_file, (json.dumps(content, indent=2) + "\n").encode())
    missing = [finding.subject for finding in found if finding.cure and finding.needed]
    if missing:
        raise UserError(f"Missing: {', '.join(missing)}; the table says what to do.")


def driver_fix(supported: int, built_for: str) -> str:
    """Return what to do about an NVIDIA driver, empty if it fits (pure).

    Args:
        supported: the newest CUDA that it runs, 1000 x major + 10 x minor.
        built_for: the CUDA that PyTorch was built for, such as "13.0"; a driver runs every minor
            version of the major ones that it knows.
    """
    if supported // 1000 >= int(built_for.split(".")[0]):
        return ""
    return f"install a driver for CUDA {built_for} or newer: PyTorch here is built for that"


def capability_fix(capability: tuple[int, int], architectures: list[str]) -> str:
    """Return what to do about a GPU, empty if PyTorch has kernels for it (pure).

    Args:
        capability: its compute capability.
        architectures: that PyTorch was built for, such as "sm_90".
    """
    oldest = min(int(name.removeprefix("sm_").rstrip("af")) for name in architectures)
    if 10 * capability[0] + capability[1] >= oldest:
        return ""
    return (
        f"take a GPU of compute capability {oldest / 10} or newer, or set "
        "CUDA_VISIBLE_DEVICES= to use none: PyTorch here has no kernels for this one"
    )


def _python() -> Finding:
    good = (3, 11) <= sys.version_info[:2] <= (3, 14)
    cure = "" if good else "make .venv with Python 3.11 to 3.14: make PYTHON=python3.13 test"
    return Finding("Python", platform.python_version(), cure)


def _package(name: str) -> Finding:
    found = installed_version(name)
    if found is None:
        return Finding(name, "not installed", f"pip install {name}, or in a clone: make test")
    return Finding(name, found)


def _training_packages() -> list[Finding]:
    """Check what training and data sets need; a model and its gallery work without."""
    from smdt.data.pipeline import DALI
    from smdt.training.deepspeed.settings import DEEPSPEED

    found = []
    for requirement, use in ((DEEPSPEED, "training and --ranks"), (DALI, "reading data sets")):
        name = requirement.partition(">")[0]
        installed = installed_version(name)
        cure = f"pip install '{requirement}': only {use} need it" if installed is None else ""
        found.append(
            Finding(name, installed or "not installed", cure, needed=installed is not None)
        )
    return found


def _machine() -> Finding:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Finding("machine", f"{len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB")


def _driver() -> Finding:
    import torch

    subject = "NVIDIA driver"
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Finding(subject, "none, which only a GPU needs", needed=False)
    supported = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(supported))
    found = f"for CUDA {supported.value // 1000}.{supported.value % 1000 // 10}"
    return Finding(subject, found, driver_fix(supported.value, torch.version.cuda or "0"))


def _accelerators() -> list[Finding]:
    """The GPUs, and what their ranks meet through."""
    import torch

    if not torch.cuda.is_available():
        said = (
            "none, which is fine: everything runs on the CPU, ranks over gloo; that is for trials, "
            "a GPU is for real training"
        )
        return [Finding("accelerator", said, needed=False)]
    found = []
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        cure = capability_fix((gpu.major, gpu.minor), torch.cuda.get_arch_list())
        text = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
        found.append(Finding(f"accelerator {number}", text, cure))
    nccl_version: Callable[[], tuple[int, ...]] = torch.cuda.nccl.version
    found.append(Finding("NCCL", ".".join(map(str, nccl_version()))))
    if len(found) > 2:
        found.append(_shared_memory())
    return found


def _shared_memory() -> Finding:
    try:
        size = shutil.disk_usage(SHARED_MEMORY).total
    except OSError:
        size = 0
    enough = size >= ENOUGH_SHARED_BYTES
    cure = "" if enough else "give the container more: docker run --shm-size=1g"
    return Finding("shared memory", f"{size / 2**20:.0f} MiB", cure, needed=False)


def _decoder() -> Finding:
    """Have DALI decode an image wherever training would."""
    import torch
    from PIL import Image

    subject = "decoding"
    image = BytesIO()
    Image.new("RGB", (16, 16)).save(image, "JPEG")
    where = ["on the CPU"]
    try:
        from smdt.data.pipeline import Decoder, require_dali

        require_dali()
        Decoder(["ground"], 1, "cpu", None, 1).decode({"ground": [image.getvalue()]})
        if torch.cuda.is_available():
            where.append("on the GPU")
            Decoder(["ground"], 1, "gpu", 0, 1).decode({"ground": [image.getvalue()]})
    except InputError:
        return Finding(subject, "none without DALI", "install it, as above says", needed=False)
    except (ImportError, OSError, RuntimeError) as error:
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        cure = "repair the driver, or install the lock again: make clean test"
        return Finding(subject, f"DALI fails {where[-1]}: {first_line}", cure)
    return Finding(subject, f"DALI, {' and '.join(where)}")


def _compiler() -> Finding:
    path = shutil.which("c++") or shutil.which("g++")
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    there = {"g++": path is not None, "Python's headers": headers.is_file()}
    lacking = " and ".join(name for name in there if not there[name])
    cure = f"install {lacking}: torch.compile and DeepSpeed's own optimizers need them"
    return Finding("C++ compiler", path or "none", cure if lacking else "", needed=False)


def _remote_start() -> Finding:
    found = [tool for tool in ("ssh", "pdsh") if shutil.which(tool)]
    missing = [tool for tool in ("ssh", "pdsh") if tool not in found]
    cure = "apt-get install openssh-client pdsh: only smdt launch up needs them" if missing else ""
    return Finding("ssh, pdsh", ", ".join(found) or "none", cure, needed=False)
