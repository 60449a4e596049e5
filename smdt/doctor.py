"""What this machine has, what it lacks, and what to do about it."""

import json
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_shards.atomic import write_atomic
from data_shards.errors import UserError

PACKAGES = ("torch", "deepspeed", "nvidia-dali-cuda130", "webdataset", "pyarrow", "timm")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

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
    """Look at the interpreter, the packages, the accelerator and the tools around them."""
    return [
        _python(),
        *(_package(name) for name in PACKAGES),
        _accelerator(),
        _cores(),
        _compiler(),
        _remote_start(),
    ]


def examine(json_file: Path | None) -> None:
    """Print all findings as a table.

    Raises:
        UserError: something that everything needs is missing.
    """
    found = findings()
    table = Table("", "found", "what to do")
    for finding in found:
        colour = "green" if not finding.cure else "red" if finding.needed else "yellow"
        table.add_row(f"[{colour}]{finding.subject}[/]", finding.found, finding.cure)
    Console().print(table)
    if json_file is not None:
        content = [asdict(finding) for finding in found]
        write_atomic(json_file, (json.dumps(content, indent=2) + "\n").encode())
    missing = [finding.subject for finding in found if finding.cure and finding.needed]
    if missing:
        raise UserError(f"Missing: {', '.join(missing)}; the table says what to do.")


def _python() -> Finding:
    good = (3, 11) <= tuple(map(int, platform.python_version_tuple()[:2])) <= (3, 12)
    cure = "" if good else "make .venv with Python 3.11 or 3.12: make PYTHON=python3.11 test"
    return Finding("Python", platform.python_version(), cure)


def _package(name: str) -> Finding:
    try:
        return Finding(name, version(name))
    except PackageNotFoundError:
        return Finding(name, "not installed", "install the lock: make test")


def _accelerator() -> Finding:
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return Finding("accelerator", f"{count} x {torch.cuda.get_device_name(0)}")
    return Finding("accelerator", "none, runs on the CPU over gloo", needed=False)


def _cores() -> Finding:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Finding("machine", f"{len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB")


def _compiler() -> Finding:
    path = shutil.which("c++") or shutil.which("g++")
    if path:
        return Finding("C++ compiler", path, needed=False)
    cure = "install g++: only torch.compile needs it"
    return Finding("C++ compiler", "none", cure, needed=False)


def _remote_start() -> Finding:
    found = [tool for tool in ("ssh", "pdsh") if shutil.which(tool)]
    missing = [tool for tool in ("ssh", "pdsh") if tool not in found]
    cure = "apt-get install openssh-client pdsh: only smdt launch up needs them" if missing else ""
    return Finding("ssh, pdsh", ", ".join(found) or "none", cure, needed=False)
