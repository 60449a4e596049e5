"""The tests that need a GPU, and how each of them ended."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from data_shards.base.errors import UserError

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Check:
    """One test file.

    Attributes:
        file: its path.
        passed: how many of its tests passed.
        failed: names of those that did not, skipped ones too.
        seconds: all of them together.
    """

    file: str
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0


def run_checks(report: Path) -> list[Check]:
    """Run every test with the marker `gpu`; what pytest prints is shown as it goes.

    Args:
        report: file that pytest writes its results into.

    Raises:
        UserError: pytest ran none.
    """
    # Most of a test is starting processes; what they hold of a GPU is little.
    at_once = max(1, min(8, len(os.sched_getaffinity(0)) // 2))
    junit = [f"--junit-xml={report}", "--override-ini=junit_family=xunit1"]
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-n", str(at_once), *junit]
    subprocess.run(command, cwd=ROOT, check=False)
    checks = read_checks(report) if report.exists() else []
    if not checks:
        raise UserError("pytest ran no test with the marker gpu; what it printed says why")
    return checks


def read_checks(report: Path) -> list[Check]:
    """Sum up pytest's JUnit report by file."""
    checks: dict[str, Check] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        check = checks.setdefault(case.attrib["file"], Check(case.attrib["file"]))
        check.seconds += float(case.attrib["time"])
        if any(case.find(kind) is not None for kind in ("failure", "error", "skipped")):
            check.failed.append(case.attrib["name"])
        else:
            check.passed += 1
    return list(checks.values())
