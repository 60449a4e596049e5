"""A cluster on one machine: hosts that reach each other by ssh, with a key that is thrown away."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.namespaces import NETWORK, Host, Process, hosts

TOOLS = ("ssh", "sshd", "ssh-keygen", "pdsh", "hostname")
SMALL_MEGABYTES = 64

SSHD_CONFIG = """
Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
"""
SSH_CONFIG = """
IdentityFile {folder}/key
UserKnownHostsFile /dev/null
StrictHostKeyChecking no
LogLevel ERROR
"""


@dataclass
class HostCluster:
    """Running hosts, the first of which starts the others' work.

    Attributes:
        hosts: in the hostfile's order.
        hostfile: one slot each.
        small: a folder with little space, as the hosts see it.
    """

    hosts: Sequence[Host]
    hostfile: Path
    small: Path

    @property
    def outside_small(self) -> Path:
        """The folder with little space, as the tests see it."""
        return Path(f"/proc/{self.hosts[0].pid}/root{self.small}")


@contextmanager
def bed(folder: Path, names: Sequence[str]) -> Iterator[HostCluster]:
    """Bring up hosts with these names; `folder` keeps their keys and settings."""
    for key in ("key", "host_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
        subprocess.run(command, check=True)
    addresses = [f"{NETWORK}.{number} {name}" for number, name in enumerate(names, start=1)]
    files = {
        "hosts": "\n".join(["127.0.0.1 localhost", *addresses, ""]),
        "ssh_config": SSH_CONFIG.format(folder=folder),
        "sshd_config": SSHD_CONFIG.format(folder=folder),
        "hostfile": "".join(f"{name} slots=1\n" for name in names),
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    small = folder / "small"
    small.mkdir()

    def prepare(holder: Process) -> None:
        mounts = [
            ["--bind", str(folder / "hosts"), "/etc/hosts"],
            ["--bind", str(folder / "ssh_config"), "/etc/ssh/ssh_config"],
            ["-t", "tmpfs", "-o", f"size={SMALL_MEGABYTES}m", "small", str(small)],
            ["-t", "tmpfs", "run", "/run"],
        ]
        for mount in mounts:
            holder.run("mount", *mount, space="--mount")
        holder.run("mkdir", "/run/sshd", space="--mount")

    with hosts(names, prepare) as started:
        for host in started:
            log = folder / f"sshd-{host.name}.log"
            host.run("/usr/sbin/sshd", "-f", folder / "sshd_config", "-E", log)
        yield HostCluster(started, folder / "hostfile", small)
