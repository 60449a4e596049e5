"""Programs that tests start, the Debian packages that hold them, and their installation.

`make system-packages` runs this file with the system's own Python, before there is an environment:
it imports nothing but the standard library. Tests ask `lacking` and `require`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable

PACKAGES = {
    "c++": "g++",
    "chromium": "chromium",
    "ip": "iproute2",
    "openssl": "openssl",
    "pdsh": "pdsh",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "hostname": "hostname",
    "mount": "mount",
    **dict.fromkeys(("nsenter", "setpriv", "unshare"), "util-linux"),
}
"""Programs of `make test`, and the package of each."""
FULL_PACKAGES = {
    "buildah": "buildah",
    "curl": "curl",
    "debootstrap": "debootstrap",
    "munged": "munge",
    **dict.fromkeys(("slurmctld", "slurmd", "sbatch", "scontrol", "squeue"), "slurm-wlm"),
}
"""Programs that only `make test-full` starts besides."""
NEEDS = "needs system packages: apt-get install "
"""How a skip's reason begins, before the packages."""
SBIN = ("/usr/sbin", "/sbin")


def find(program: str) -> str | None:
    """Return the path of a program; daemons are found where only root's PATH leads."""
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), *SBIN]))


def missing_packages(programs: Iterable[str]) -> list[str]:
    """Return the packages of the programs that are not installed, sorted."""
    known = PACKAGES | FULL_PACKAGES
    return sorted({known.get(name, name) for name in programs if find(name) is None})


def packages_in(reason: str) -> list[str]:
    """Return the packages that a skip's reason names."""
    return re.findall(r"[\w.+-]+", reason.partition(NEEDS)[2].partition("')")[0])


def lacking(*programs: str, root: bool = False) -> str:
    """Return why tests that need these programs, and perhaps root, can't run here; else ''."""
    packages = missing_packages(programs)
    if packages:
        return f"{NEEDS}{' '.join(packages)}"
    return "needs root" if root and os.geteuid() != 0 else ""


def require(*programs: str, root: bool = False) -> None:
    """Skip the calling test if it can't run here; in CI, where nothing may be missing, fail it."""
    import pytest

    reason = lacking(*programs, root=root)
    if reason and "CI" in os.environ:
        pytest.fail(f"in CI nothing may be missing: {reason}", pytrace=False)
    if reason:
        pytest.skip(reason)


def main(arguments: list[str]) -> int:
    """Install what is missing for `make test`, or with `--full` for `make test-full`."""
    programs = {**PACKAGES, **FULL_PACKAGES} if "--full" in arguments else PACKAGES
    packages = missing_packages(programs)
    if not packages:
        return 0
    wanted = " ".join(packages)
    if os.geteuid() != 0 or find("apt-get") is None:
        print(f"Tests that need these system packages will be skipped: {wanted}")
        return 0
    print(f"Installing system packages for the tests (SYSTEM_PACKAGES=no skips this): {wanted}")
    apt = ["apt-get", "-qq", "-o", "Dpkg::Use-Pty=0"]
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run([*apt, "update"], check=False, env=quiet)
    options = ["install", "--yes", "--no-install-recommends"]
    for package in packages:  # one by one: a name that this release lacks stops no other
        subprocess.run([*apt, *options, package], check=False, env=quiet, stdout=subprocess.DEVNULL)
    left = missing_packages(programs)
    if left:
        print(f"Not installed, so their tests will be skipped: {' '.join(left)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
