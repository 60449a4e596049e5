"""Build the argv and environment of `deepspeed` from the launch options (pure)."""

import base64
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_shards.base.errors import InputError
from data_shards.base.names import is_address, unprintable
from launcher.hosts.hostfile import Hosts, include_filter
from smdt.training.ranks.lease import ATTEMPT_VARIABLE, LEASE_VARIABLE
from smdt.training.ranks.stopping import LAUNCHER_PID_VARIABLE

RUNNER = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet"]
"""`deepspeed`, of the interpreter that runs us."""
_UNQUOTED = re.compile(r"[^\w@+=:,./~-]")


@dataclass(frozen=True)
class LocalLaunch:
    """A module on some ranks of this machine alone.

    Attributes:
        module: what each rank runs.
        arguments: of its command line.
        devices: as CUDA_VISIBLE_DEVICES names them, one for each rank to start; see `devices_of`.
        port: free TCP port of the rendezvous.
        cores: cores of this machine, to be shared by the ranks.
        has_gpu: whether ranks train on GPUs.
        lease: of the run whose folder they write, absolute; None if they write none.
    """

    module: str
    arguments: Sequence[str]
    devices: Sequence[str]
    port: int
    cores: int
    has_gpu: bool
    lease: Path | None = None


@dataclass(frozen=True)
class ClusterLaunch:
    """A module on the ranks of some hosts, started over pdsh.

    Attributes:
        module: what each rank runs.
        arguments: of its command line.
        hostfile: DeepSpeed's.
        hosts: the slots of it that are used.
        address: of the first host, where the ranks meet.
        port: free TCP port there.
        environment: shell script that each host sources first.
    """

    module: str
    arguments: Sequence[str]
    hostfile: Path
    hosts: Hosts
    address: str
    port: int
    environment: Path


def local_command(plan: LocalLaunch) -> list[str]:
    """Return the argv that starts the plan through DeepSpeed's launcher."""
    return [*host_launcher(plan.devices, plan.port), "--module", plan.module, *plan.arguments]


def host_launcher(devices: Sequence[str], port: int) -> list[str]:
    """Return the argv that starts a script, which follows it, as the ranks of this machine.

    It is what `deepspeed` starts on each host. The runner before it would import torch and
    DeepSpeed once more, and give the ranks other GPUs than CUDA_VISIBLE_DEVICES names.

    Args:
        devices: one for each rank; see `devices_of`.
        port: free TCP port of the rendezvous.
    """
    world = base64.urlsafe_b64encode(json.dumps({"localhost": list(devices)}).encode()).decode()
    launcher = [sys.executable, "-u", "-m", "deepspeed.launcher.launch", "--quiet"]
    return [*launcher, "--log_level=error", f"--world_info={world}", f"--master_port={port}"]


def devices_of(ranks: int, has_gpu: bool, visible: str | None) -> list[str]:
    """Return the device of each rank of this machine, as CUDA_VISIBLE_DEVICES names it.

    Args:
        ranks: processes to start.
        has_gpu: whether they train on GPUs.
        visible: the value of CUDA_VISIBLE_DEVICES, None if it is not set.
    """
    if not has_gpu:
        return ["-1"] * ranks  # names no device: CUDA shows none
    named = visible.split(",") if visible else list(map(str, range(ranks)))
    return named[:ranks]


def cluster_command(plan: ClusterLaunch) -> list[str]:
    """Return the argv that starts the plan through DeepSpeed's launcher.

    Raises:
        InputError: an argument would not reach the hosts unchanged.
    """
    hosts = ["--hostfile", str(plan.hostfile), "--include", include_filter(plan.hosts)]
    # One host too is reached by ssh: it need not be this one. The preflight has reached it.
    rendezvous = ["--force_multi", "--no_ssh_check"]
    rendezvous += ["--master_addr", plan.address, "--master_port", str(plan.port)]
    script = ["--venv_script", _pdsh_word(shlex.quote(str(plan.environment)))]
    _refuse_unprintable("the run folder", str(plan.environment.parent))
    arguments = [remote_argument(argument) for argument in plan.arguments]
    return [*RUNNER, *hosts, *rendezvous, *script, "--module", plan.module, *arguments]


def remote_argument(argument: str) -> str:
    """Return what DeepSpeed has to be given so that the hosts' shells see `argument`.

    DeepSpeed puts what has a space into double quotes and passes on the rest unchanged; pdsh
    replaces `%h`, `%n`, `%u` and `%%`.

    Raises:
        InputError: it holds a line's end or another control character.
    """
    _refuse_unprintable("the argument", argument)
    if " " in argument:
        return _pdsh_word(re.sub(r"([\\$`])", r"\\\1", argument))
    return _pdsh_word(shlex.quote(argument))


def check_working_folder(folder: Path, interpreter: str) -> None:
    """Check that DeepSpeed's launcher can start ranks from a folder: it quotes no path.

    Args:
        folder: working folder, absolute.
        interpreter: Python's path.

    Raises:
        InputError: a path holds a character that pdsh or a shell would interpret.
    """
    for what, path in [("working folder", str(folder)), ("Python interpreter", interpreter)]:
        found = _UNQUOTED.search(path)
        if found is not None:
            raise InputError(
                f"the {what} {path!r} holds {found[0]!r}, and DeepSpeed's launcher does not quote "
                "it for the hosts' shells: use a path of letters, digits and ._-+=@,:~"
            )


def check_address(address: str | None) -> None:
    """Check the rendezvous address, which becomes a part of the hosts' command lines.

    Raises:
        InputError: it is neither the name nor the IP address of a host.
    """
    if address is not None and not is_address(address):
        raise InputError(f"--master-addr {address!r} is not a host name or IP address")


def _pdsh_word(word: str) -> str:
    """Return what pdsh turns into `word`."""
    return word.replace("%", "%%")


def _refuse_unprintable(what: str, text: str) -> None:
    found = unprintable(text)
    if found:
        raise InputError(
            f"{what} {text!r} holds {found!r}, which no command line of a host can hold; "
            "set it in the YAML, or choose another name"
        )


def train_arguments(
    config: Path, deepspeed_config: Path | None, resume: str, overrides: Sequence[str]
) -> list[str]:
    """Return the command line of `smdt.train`.

    Args:
        config: YAML of the run.
        deepspeed_config: DeepSpeed's own JSON, None for its defaults.
        resume: `auto`, `never`, or a checkpoint folder.
        overrides: `section.key=value` each.
    """
    arguments = ["--config", str(config), "--resume", resume]
    if deepspeed_config is not None:
        arguments += ["--deepspeed_config", str(deepspeed_config)]
    return [*arguments, *overrides]


def check_gpus(ranks: int, gpus: int) -> None:
    """Check that a machine has a GPU for each of its ranks, or none at all.

    Raises:
        InputError: it has too few.
    """
    if 0 < gpus < ranks:
        raise InputError(
            f"--ranks {ranks}: each rank needs a GPU and this machine has {gpus}; set "
            f"--ranks {gpus}, or CUDA_VISIBLE_DEVICES= (to nothing) to use the CPU alone"
        )


def local_attempt(launcher_pid: int) -> str:
    """Return the name of the one attempt that a process of this machine makes."""
    return f"local-{launcher_pid}"


def local_environment(
    plan: LocalLaunch, inherited: Mapping[str, str], launcher_pid: int
) -> dict[str, str]:
    """Return the environment of that argv: each rank gets its part of the cores."""
    ours = {"OMP_NUM_THREADS": str(max(1, plan.cores // len(plan.devices)))}
    if not plan.has_gpu:
        ours["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed warns, in every process, that it found none
    attempt = {
        LAUNCHER_PID_VARIABLE: str(launcher_pid),
        ATTEMPT_VARIABLE: local_attempt(launcher_pid),
    }
    if plan.lease is not None:
        attempt[LEASE_VARIABLE] = str(plan.lease)
    return {**ours, **inherited, **attempt}
