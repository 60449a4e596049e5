"""The README followed on a Debian 13 that has nothing but what the README says to install."""

import fcntl
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests import debian
from tests.system_packages import require

pytestmark = [pytest.mark.full, pytest.mark.slow, pytest.mark.timeout(2400)]

ROOT = Path(__file__).parent.parent
STORE = ROOT / "build" / "fresh"
SUITE = "trixie"
CLONE = "root/smdt"
ENTER = """
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
mount --bind "$2" "$1$3"
shift 3
exec "$@"
"""
"""Run in mount and process namespaces of its own, which end with it."""


class Machine:
    """A Debian of its own in `root`, with a clone of this repository's current commit."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for file in ("etc/hosts", "etc/resolv.conf"):
            shutil.copyfile(f"/{file}", root / file)
        debian.HOST_CACHE.mkdir(parents=True, exist_ok=True)
        (root / debian.CACHE.removeprefix("/")).mkdir(parents=True)
        subprocess.run(["git", "clone", "--quiet", "--depth=1", f"file://{ROOT}", self.clone],
                       check=True)  # fmt: skip
        self.run("apt-get -qq update")

    @property
    def clone(self) -> Path:
        """The clone, as seen from outside."""
        return self.root / CLONE

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a command line in the clone."""
        variables = {
            "DEBIAN_FRONTEND": "noninteractive",
            "HOME": "/root",
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "UV_LINK_MODE": "copy",
            **debian.environment(),
        }
        space = ["setpriv", "--pdeathsig", "KILL"]
        space += ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        mounts = ["sh", "-ec", ENTER, "sh", self.root, debian.HOST_CACHE, debian.CACHE]
        inside = ["chroot", self.root, "sh", "-c", f"cd /{CLONE} && {line}"]
        return subprocess.run(
            [*space, *mounts, *inside],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def succeed(self, line: str) -> str:
        """Run a command line that has to succeed; return what it printed."""
        done = self.run(line)
        assert done.returncode == 0, f"{line}\n{done.stdout}"
        return done.stdout

    def install(self, packages: Iterable[str]) -> None:
        """Install Debian packages."""
        self.succeed(f"apt-get -qq --yes install {' '.join(packages)}")


@pytest.fixture
def machine(request) -> Iterator[Machine]:
    """Nothing of it is left: installed, it is 8 GB."""
    require("debootstrap", "git", "mount", "setpriv", "unshare", root=True)
    root = STORE / request.node.name
    shutil.rmtree(root, ignore_errors=True)
    subprocess.run(["cp", "--archive", _base(), root], check=True)
    try:
        yield Machine(root)
    finally:
        shutil.rmtree(root)


def _base() -> Path:
    """A Debian that machines are copied from, made by the first process that wants it."""
    STORE.mkdir(parents=True, exist_ok=True)
    base = STORE / SUITE
    with (STORE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not base.exists():
            unfinished = STORE / f"{SUITE}.tmp"
            shutil.rmtree(unfinished, ignore_errors=True)
            debian.make(unfinished, SUITE)
            unfinished.rename(base)
    return base


def readme_packages() -> list[str]:
    """The packages of the README's line for Debian."""
    (line,) = re.findall(r"^apt-get install ([^#\n]+)", (ROOT / "README.md").read_text(), re.M)
    return line.split()


def test_what_is_missing_is_said_in_one_sentence(machine):
    """The README's packages are installed one after the other, as the sentences ask for them."""

    def missing(target: str = "demo", setting: str = "") -> str:
        done = machine.run(f"make {setting} {target}")
        assert done.returncode != 0
        (said,) = [line for line in done.stdout.splitlines() if not line.startswith("make: ")]
        assert not (machine.clone / ".venv").exists()
        return said.removeprefix("environment: ")

    def install(*packages: str) -> None:
        assert set(packages) <= set(readme_packages())
        machine.install(packages)

    python = "Python 3.11 to 3.14 with its headers and venv module"
    apt = "on Debian or Ubuntu: apt-get install"
    install("make")
    assert missing() == (f"missing: a C++ compiler, {python}; {apt} g++ python3-dev python3-venv.")
    assert missing("test") == missing("demo")
    install("g++")
    assert missing() == f"missing: {python}; {apt} python3-dev python3-venv."
    install("python3-dev")
    assert missing() == f"missing: {python}; {apt} python3-dev python3-venv."
    assert missing(setting="PYTHON=python3") == f"PYTHON=python3 is not {python}."
    install("python3-venv")
    small = "mount -t tmpfs -o size=1g none /mnt && cp --recursive . /mnt/smdt && cd /mnt/smdt"
    assert "free some space" in machine.run(f"{small} && make demo").stdout


def test_the_readme_leads_to_a_recall(machine):
    machine.install(readme_packages())
    said = machine.succeed("make .venv/.complete")
    assert "Making .venv with Python 3.13" in said
    machine.succeed(".venv/bin/smdt doctor --json doctor.json")
    found = json.loads((machine.clone / "doctor.json").read_text())
    assert {each["subject"] for each in found if each["cure"]} <= {"ssh, pdsh"}

    machine.succeed(".venv/bin/smdt demo --quick")
    run = machine.clone / "demo" / "quick" / "run"
    scores, references, environment = (
        json.loads((run / f"{file}.json").read_text())
        for file in ("evaluation", "references", "environment")
    )
    assert scores["scores"]["R@10"] > 2 * references["chance"]["R@10"]
    assert (run / "report.html").exists()
    head = subprocess.check_output(["git", "-C", machine.clone, "rev-parse", "HEAD"], text=True)
    assert environment["commit"] == head.strip()
