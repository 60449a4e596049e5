"""A Slurm of two nodes on one host of its own: munge, the controller and two node daemons."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.namespaces import Host, Process, hosts

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue")
NODES = ("c0", "c1")
START_SECONDS = 60

CONFIG = """
ClusterName=test
SlurmctldHost=slurm
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=c0 NodeHostname=slurm NodeAddr=127.0.0.1 Port=17001 CPUs=2
NodeName=c1 NodeHostname=slurm NodeAddr=127.0.0.1 Port=17002 CPUs=2
PartitionName=low Nodes=c0,c1 Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=c0,c1 PriorityTier=2
"""


@dataclass
class Slurm:
    """A running Slurm.

    Attributes:
        host: where its commands run.
        config: its slurm.conf.
    """

    host: Host
    config: Path

    def run(self, *words: object) -> str:
        """Run one of its commands; return what it printed."""
        return self.host.run("env", f"SLURM_CONF={self.config}", *words).stdout.strip()

    def state(self, job: str) -> str:
        """State of a job, such as RUNNING, empty when Slurm has forgotten it."""
        shown = self.host.run(
            *("env", f"SLURM_CONF={self.config}", "squeue", "--noheader", "--states=all"),
            *("--jobs", job, "--format=%T"),
            check=False,
        )
        return shown.stdout.strip()


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """Bring it up; `folder` keeps its files."""
    folder.chmod(0o711)
    (folder / "state").mkdir()
    config, names, key = folder / "slurm.conf", folder / "hosts", folder / "munge.key"
    config.write_text(CONFIG.format(folder=folder))
    names.write_text(f"127.0.0.1 localhost slurm {' '.join(NODES)}\n")
    key.write_bytes(b"a key of 32 bytes or more, for a test only")
    key.chmod(0o400)

    def prepare(holder: Process) -> None:
        holder.run("mount", "--bind", str(names), "/etc/hosts", space="--mount")
        holder.run("mount", "-t", "tmpfs", "run", "/run", space="--mount")

    with hosts(["slurm"], prepare) as (host,):
        up = Slurm(host, config)
        files = [f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid"]
        logs = [f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]
        up.run("munged", "--force", f"--key-file={key}", *files, *logs)
        up.run("slurmctld")
        for node in NODES:
            up.run("slurmd", "-N", node)
        end = time.monotonic() + START_SECONDS
        while up.run("sinfo", "--noheader", "--partition=low", "--format=%D %T") != "2 idle":
            assert time.monotonic() < end, (folder / "slurmctld.log").read_text()
            time.sleep(0.2)
        yield up
