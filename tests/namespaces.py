"""Hosts on one machine: each its own network, process ids, name and mounts, joined by a bridge.

Everything hangs on one process, the holder, which dies with the test process: whatever happens, no
namespace, mount or process outlives it, and nothing is seen or listened on outside.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.system_packages import require

NETWORK = "10.77.0"
TOOLS = ("ip", "unshare", "nsenter", "setpriv", "mount")
START_SECONDS = 20


def require_namespaces(*programs: str) -> None:
    """Skip the calling test where hosts, and the programs that are to run on them, can't be had."""
    require(*TOOLS, *programs, root=True)


@dataclass
class Host:
    """A running host.

    Attributes:
        name: its host name.
        address: its IPv4 address on the bridge.
        pid: of its first process, whose end is the end of all others.
    """

    name: str
    address: str
    pid: int
    _bridge: "Process" = field(repr=False)

    def command(self, words: Sequence[object], *, only_network: bool = False) -> list[str]:
        """The command that runs `words` here, or as a process of the caller's on its network."""
        spaces = ["--net"] if only_network else ["--net", "--pid", "--uts", "--mount"]
        here = [f"--wdns={Path.cwd()}"] if not only_network else []
        return ["nsenter", "--target", str(self.pid), *spaces, *here, *map(str, words)]

    def run(self, *words: object, **options: object) -> subprocess.CompletedProcess[str]:
        """Run `words` here to their end."""
        settings = {"capture_output": True, "text": True, "check": True, **options}
        return subprocess.run(self.command(words), **settings)

    def processes(self) -> list[int]:
        """Process ids, as seen from outside, of all that runs here but its first process."""
        space = Path(f"/proc/{self.pid}/ns/pid").readlink()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and (entry / "ns" / "pid").readlink() == space:
                    found.append(int(entry.name))
            except OSError:
                continue
        return [pid for pid in found if pid != self.pid]

    def cut(self) -> None:
        """Let no packet through to or from this host."""
        self._bridge.run("ip", "link", "set", "dev", self.name, "down")

    def mend(self) -> None:
        """Undo `cut`."""
        self._bridge.run("ip", "link", "set", "dev", self.name, "up")

    def kill(self) -> None:
        """End every process of this host, if there is one left."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


class Process:
    """The first process of a set of namespaces, and how to run something in them.

    Args:
        words: what makes the namespaces.
        forks: how often that forks on the way.
    """

    def __init__(self, words: Sequence[str], forks: int) -> None:
        # The first process is a shell that waits: it takes in the orphans of its namespace.
        inside = ["sh", "-c", "while :; do sleep 1000 & wait; done"]
        self.outer = subprocess.Popen([*words, *inside], stdin=subprocess.DEVNULL)
        self.pid = self.outer.pid
        for _ in range(forks):
            self.pid = _wait_for(lambda: _child(self.pid))

    def run(self, *words: str, space: str = "--net") -> None:
        """Run `words` in one of the namespaces."""
        enter = ["nsenter", "--target", str(self.pid), space]
        subprocess.run([*enter, *words], check=True, capture_output=True, text=True)


@contextmanager
def hosts(
    names: Sequence[str], prepare: Callable[[Process], None] | None = None
) -> Iterator[list[Host]]:
    """Yield hosts with these names; `prepare` may mount what all of them are to see."""
    dies_with_us = ["setpriv", "--pdeathsig", "KILL"]
    space = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--net"]
    holder = Process([*dies_with_us, *space], forks=1)
    inner: list[Process] = []
    try:
        holder.run("ip", "link", "set", "lo", "up")
        holder.run("ip", "link", "add", "bridge", "type", "bridge")
        holder.run("ip", "link", "set", "bridge", "up")
        if prepare is not None:
            prepare(holder)
        enter = ["nsenter", "--target", str(holder.pid), "--mount", "--pid", "--net"]
        inner = [Process([*dies_with_us, *enter, *space, "--uts"], forks=2) for _ in names]
        yield [
            _connect(holder, process, name, f"{NETWORK}.{number}")
            for number, (name, process) in enumerate(zip(names, inner, strict=True), start=1)
        ]
    finally:
        for process in (holder, *inner):
            process.outer.kill()
            process.outer.wait()
        _wait_for(lambda: not Path(f"/proc/{holder.pid}").exists())


def _connect(holder: Process, process: Process, name: str, address: str) -> Host:
    host = Host(name, address, process.pid, holder)
    holder.run("ip", "link", "add", "name", name, "type", "veth",
               "peer", "name", "eth0", "netns", str(process.pid))  # fmt: skip
    holder.run("ip", "link", "set", "dev", name, "master", "bridge", "up")
    host.run("hostname", name)
    host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        host.run("ip", "link", "set", device, "up")
    return host


def _child(pid: int) -> int | None:
    """Return the child of a process, None if it has none yet."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


def _wait_for(found: Callable[[], object]):
    end = time.monotonic() + START_SECONDS
    while not (value := found()):
        assert time.monotonic() < end, "namespaces did not come up"
        time.sleep(0.01)
    return value
