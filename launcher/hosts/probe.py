"""Facts of a host before a launch."""

import hashlib
import os
import platform
import secrets
import socket
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import data_shards
import launcher
import smdt
from data_shards.base.atomic import write_atomic
from data_shards.base.errors import UserError
from data_shards.base.packages import installed_version
from data_shards.format.manifest import manifest_hash
from smdt.training.ranks.environment import free_port

PACKAGES = ("torch", "deepspeed", "nvidia-dali-cuda130", "numpy", "webdataset")


@dataclass(frozen=True)
class ProbeRequest:
    """The request of a launch to every host.

    Attributes:
        files: the run's YAML and DeepSpeed's JSON.
        shards: folder or URL of the data set.
        run_folder: where checkpoints go, absolute.
        token: of the launch; the run folder has a file with it.
        metrics_ports: where ranks would serve their metrics, loopback or not.
        environment: variables that the ranks will have.
    """

    files: Sequence[str]
    shards: str
    run_folder: str
    token: str
    metrics_ports: Sequence[int] = ()
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """The answer of a host; an `_error` is empty if the check passed.

    Attributes:
        versions: of Python and the packages, by name.
        code: hash of our own source.
        files: hash of the question's files.
        files_error: why one of them cannot be read.
        manifest: hash of the data set's manifest.
        manifest_error: why it cannot be read.
        folder_error: why the run folder is not shared with the launcher, or cannot be written.
        device: kind of the accelerators, `cpu` without any.
        devices: how many; cores of a CPU.
        addresses: of this host, loopback left out.
        own_address: what its name resolves to, where gloo listens; empty if to nothing.
        port: a free TCP port.
        taken_ports: those of the request that another process listens on.
    """

    versions: dict[str, str]
    code: str
    files: str
    files_error: str
    manifest: str
    manifest_error: str
    folder_error: str
    device: str
    devices: int
    addresses: list[str]
    own_address: str
    port: int
    taken_ports: list[int]


def token_file(run_folder: Path, token: str) -> Path:
    """Return where the launcher puts its token for the hosts to find."""
    return run_folder / f"preflight-{token}"


def probe(question: ProbeRequest) -> Facts:
    """Return the facts of this host."""
    os.environ.update(question.environment)
    files, files_error = _hash_of(map(Path, question.files))
    manifest, manifest_error = _manifest(question.shards)
    device, devices = _devices()
    return Facts(
        versions=_versions(),
        code=code_hash(),
        files=files,
        files_error=files_error,
        manifest=manifest,
        manifest_error=manifest_error,
        folder_error=_folder_error(Path(question.run_folder), question.token),
        device=device,
        devices=devices,
        addresses=_addresses(),
        own_address=_own_address(),
        port=free_port(),
        taken_ports=[port for port in question.metrics_ports if _is_taken(port)],
    )


def code_hash() -> str:
    """Return a hash over the source of our packages, as imported here."""
    digest = hashlib.sha256()
    for package in (data_shards, launcher, smdt):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root.parent).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    packages = {name: installed_version(name) or "missing" for name in PACKAGES}
    return {"python": platform.python_version(), **packages}


def _hash_of(paths: Iterable[Path]) -> tuple[str, str]:
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            return "", f"{path}: {error.strerror}"
    return digest.hexdigest(), ""


def _manifest(shards: str) -> tuple[str, str]:
    try:
        return manifest_hash(shards), ""
    except (UserError, OSError) as error:
        return "", str(error)


def _folder_error(folder: Path, token: str) -> str:
    try:
        if token_file(folder, token).read_text() != token:
            return "holds another launch's files"
    except FileNotFoundError:
        return "is not the launcher's: what the launcher wrote there is not here"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    trial = folder / f"preflight-{token}-{secrets.token_hex(8)}"
    try:
        write_atomic(trial, b"")
        trial.unlink()
    except OSError as error:
        return f"cannot be written: {error.strerror}"
    return ""


def _devices() -> tuple[str, int]:
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return "cpu", len(os.sched_getaffinity(0))
    return accelerator.type, torch.accelerator.device_count()


def _addresses() -> list[str]:
    try:
        listed = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False)
    except OSError:  # not installed: ranks meet at what the host's own name resolves to
        return []
    return listed.stdout.split()


def _own_address() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return ""


def _is_taken(port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", port))
        except OSError:
            return True
        return False
