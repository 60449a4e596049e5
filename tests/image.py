"""The container image, built over a stand-in for NVIDIA's base, which no registry here has.

The stand-in is a minimal Debian that knows how this machine reaches its package registries. All
that buildah keeps lies in one folder; a second build finds there what has not changed.
"""

import fcntl
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests import debian

ROOT = Path(__file__).parent.parent
STORE = ROOT / "build" / "image"
TOOLS = ("buildah", "debootstrap")
SUITE, PYTHON = "bookworm", "python3.11"
BASE, IMAGE = "smdt-stand-in", "smdt"
COMMIT = "0123456789abcdef"
TOLD = 4000
"""Characters of what a failed command said."""


def buildah(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run buildah on the store of these tests."""
    places = ["--root", STORE / "storage", "--runroot", STORE / "run"]
    done = subprocess.run(
        [str(word) for word in ("buildah", *places, *words)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert not check or done.returncode == 0, (done.stdout + done.stderr)[-TOLD:]
    return done


def build() -> None:
    """Build the repository's Dockerfile over the stand-in, one process at a time."""
    STORE.mkdir(parents=True, exist_ok=True)
    with (STORE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _build()


def _build() -> None:
    if buildah("inspect", "--type", "image", BASE, check=False).returncode != 0:
        _make_base()
    # What uv has downloaded for .venv need not travel again.
    debian.HOST_CACHE.mkdir(parents=True, exist_ok=True)
    buildah(
        *("build", "--isolation", "chroot", "--pull-never", "--layers", "--from", BASE),
        *("--build-arg", f"PYTHON={PYTHON}", "--build-arg", f"COMMIT={COMMIT}"),
        *("--volume", f"{debian.HOST_CACHE}:{debian.CACHE}"),
        *("--tag", IMAGE, ROOT),
    )


def _make_base() -> None:
    container = buildah("from", "scratch").stdout.strip()
    root = Path(buildah("mount", container).stdout.strip())
    debian.make(root, SUITE)
    for name, value in debian.environment().items():
        buildah("config", "--env", f"{name}={value}", container)
    buildah("umount", container)
    buildah("commit", "--rm", container, BASE)


class Container:
    """A running copy of the image."""

    def __init__(self) -> None:
        self.name = buildah("from", "--pull-never", IMAGE).stdout.strip()

    def run(
        self, *words: object, options: Sequence[object] = (), check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run `words` as the image's user, or as `options` say."""
        return buildah(
            *("run", "--isolation", "chroot", *options, self.name, "--", *words), check=check
        )

    def remove(self) -> None:
        """Remove it with all that was written in it."""
        buildah("rm", self.name)
