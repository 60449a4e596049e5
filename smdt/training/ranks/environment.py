"""Rank and world size of a process, and a free port for the rendezvous."""

import os
import socket

from data_shards.base.errors import InputError

OPENMPI = {
    "RANK": "OMPI_COMM_WORLD_RANK",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "LOCAL_SIZE": "OMPI_COMM_WORLD_LOCAL_SIZE",
}
"""Torch's variables of a process's place, and OpenMPI's."""


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and the number of ranks, from the launcher's environment.

    What OpenMPI says is said in torch's words from now on. Without a launcher the process is a
    world of its own, and the environment says so from now on.

    Raises:
        InputError: OpenMPI started this process, and MASTER_ADDR is not set.
    """
    if "RANK" not in os.environ and OPENMPI["RANK"] in os.environ:
        if "MASTER_ADDR" not in os.environ:
            raise InputError(
                "mpirun says no rank where rank 0 is: add -x MASTER_ADDR=HOST to its options "
                "(`deepspeed --launcher_args`), HOST being the hostfile's first"
            )
        os.environ |= {name: os.environ[theirs] for name, theirs in OPENMPI.items()}
        os.environ.setdefault("MASTER_PORT", "29500")
    if "RANK" not in os.environ:
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
        os.environ |= {**alone, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def free_port() -> int:
    """Return a TCP port that is free on every address at this moment."""
    with socket.socket() as trial:
        trial.bind(("", 0))
        port: int = trial.getsockname()[1]
        return port
