"""A Ray cluster of two nodes on one machine, each on a host of its own (tests/namespaces.py).

Ray listens on every interface it sees, whatever address it is given: there it is the host's own
loopback and one end of a cable, and nothing of this machine.
"""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.namespaces import NETWORK, hosts

HEAD, PORT = f"{NETWORK}.1", 6379
ADDRESS = f"{HEAD}:{PORT}"
STORE_BYTES = 80_000_000
START_SECONDS = 120


class Node:
    """A running Ray node."""

    def __init__(self, host, arguments, log):
        self.host = host
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"]
        options = [f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats", *arguments]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                host.command([*ray, *options]),
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
        """The command that runs `words` on this node's network, as a process of the caller's."""
        return self.host.command(words, only_network=True)

    def kill(self):
        self.host.kill()
        self.process.wait()


@contextmanager
def two_nodes():
    """Yield the head, where drivers run, and the other node."""
    with ExitStack() as stack:
        # Not pytest's folder: Ray puts sockets there, whose paths may have 107 characters.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ray")))
        first, second = stack.enter_context(hosts(["ray-a", "ray-b"]))
        head = [
            "--head",
            f"--node-ip-address={HEAD}",
            f"--port={PORT}",
            "--include-dashboard=false",
            f"--temp-dir={folder}",
        ]
        other = [f"--address={ADDRESS}", f"--node-ip-address={second.address}"]
        nodes = []
        for number, (host, arguments) in enumerate([(first, head), (second, other)]):
            nodes.append(Node(host, arguments, folder / f"node{number}.log"))
            stack.callback(nodes[-1].kill)
        yield nodes
