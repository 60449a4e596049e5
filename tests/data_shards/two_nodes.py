"""A Ray cluster of two nodes on one machine: each in its own network and process namespace.

Ray listens on every interface it sees, whatever address it is given: in a namespace that is its own
loopback and one end of a cable, and nothing of this machine.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

HEAD, PORT = "10.77.0.1", 6379
ADDRESS = f"{HEAD}:{PORT}"
STORE_BYTES = 80_000_000
START_SECONDS = 120


def why_not():
    """What this machine lacks for it, or an empty string."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "unshare") if shutil.which(tool) is None]
    return f"{missing[0]} is not installed" if missing else ""


class Node:
    """A running Ray node."""

    def __init__(self, namespace, arguments, log):
        self.namespace = namespace
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"]
        options = [f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats", *arguments]
        # The end of `unshare` is the end of every process of the node.
        inside = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                self.command([*inside, *ray, *options]),
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        deadline = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in log.read_text():
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)

    def command(self, words):
        """The command that runs `words` on this node's host."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def kill(self):
        self.process.kill()
        self.process.wait()


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def two_nodes():
    """Yield the head, where drivers run, and the other node."""
    names = [f"smdt{os.getpid()}{end}" for end in "ab"]
    with ExitStack() as stack:
        # Not pytest's folder: Ray puts sockets there, whose paths may have 107 characters.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ray")))
        for name in names:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", "eth0", "netns", names[0], "type", "veth",
           "peer", "name", "eth0", "netns", names[1])  # fmt: skip
        for number, name in enumerate(names, start=1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
        head = [
            "--head",
            f"--node-ip-address={HEAD}",
            f"--port={PORT}",
            "--include-dashboard=false",
            f"--temp-dir={folder}",
        ]
        other = [f"--address={ADDRESS}", "--node-ip-address=10.77.0.2"]
        nodes = []
        for number, arguments in enumerate((head, other)):
            nodes.append(Node(names[number], arguments, folder / f"node{number}.log"))
            stack.callback(nodes[-1].kill)
        yield nodes
