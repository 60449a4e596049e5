"""Slurm's batch script and Kubernetes' JobSet of a run (pure)."""

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from jinja2 import Environment, PackageLoader, StrictUndefined

from data_shards.base.errors import InputError
from data_shards.base.names import KUBERNETES_LONGEST, kubernetes_name, slurm_name, unprintable

CLAIM_LONGEST = 253
_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")


@dataclass(frozen=True)
class SchedulerJob:
    """The job that a scheduler starts.

    Attributes:
        name: the run's.
        run: the run folder, absolute.
        folder: where the ranks start.
        arguments: of `smdt.train`.
        nodes: machines.
        ranks: on each.
        max_restarts: after a failure.
        notice_seconds: time that ranks have to save before they are ended.
    """

    name: str
    run: str
    folder: str
    arguments: Sequence[str]
    nodes: int
    ranks: int
    max_restarts: int
    notice_seconds: int


def slurm_script(allocation: SchedulerJob, options: Sequence[str]) -> str:
    """Return the batch script.

    Args:
        allocation: what to start.
        options: further ones of `sbatch`, such as `--partition=gpu`.

    Raises:
        InputError: an option is not one of `sbatch`, or Slurm cannot be given the run folder or an
            argument.
    """
    for option in options:
        if re.fullmatch(r"--[a-z-]+(=\S+)?", option) is None:
            raise InputError(f"--option {option!r} is not an option of sbatch; write --name=value")
    if "\\" in allocation.run:
        raise InputError(
            f"the run folder {allocation.run!r} holds a backslash, which Slurm leaves out of the "
            "name of its log; set run.out to another folder"
        )
    command = shlex.join([sys.executable, "-m", "smdt.train", *allocation.arguments])
    return _render(
        "slurm.sh",
        allocation,
        name=slurm_name(allocation.name),
        output=f"{_sbatch_word(allocation.run.replace('%', '%%'))}/logs/slurm-%j.log",
        command=command,
        options=options,
        python=sys.executable,
    )


def jobset(allocation: SchedulerJob, *, image: str, python: str, claim: str, mount: str) -> str:
    """Return the JobSet.

    Args:
        allocation: what to start.
        image: container image with SMDT.
        python: interpreter in it.
        claim: persistent volume claim that all pods may write.
        mount: where it is mounted; shards and run folder are below.

    Raises:
        InputError: the run folder is elsewhere, or Kubernetes cannot be given a name.
    """
    for flag, path in [("--mount", mount), ("--folder", allocation.folder)]:
        if not path.startswith("/") or ":" in path or unprintable(path):
            raise InputError(f"{flag} {path!r} is not an absolute path of a pod, such as /data")
    if _CLAIM.fullmatch(claim) is None or len(claim) > CLAIM_LONGEST:
        raise InputError(
            f"--claim {claim!r} is not a Kubernetes name: lower-case letters, digits, - and ., as "
            "`kubectl get pvc` lists it"
        )
    if _IMAGE.fullmatch(image) is None:
        raise InputError(f"--image {image!r} is not an image; write registry/name:tag")
    run = PurePosixPath(allocation.run)
    if not run.is_relative_to(mount) or ".." in run.parts:
        raise InputError(
            f"the run folder {allocation.run} is not below {mount}, where the pods see the claim "
            f"{claim}; set run.out to a folder there, or another --mount"
        )
    # What JobSet appends for the last pod, which has the longest name.
    longest = KUBERNETES_LONGEST - len(f"-hosts-0-{allocation.nodes - 1}-abcde")
    return _render(
        "jobset.yaml",
        allocation,
        arguments=[*allocation.arguments],
        name=kubernetes_name(allocation.name, longest),
        image=image,
        python=python,
        claim=claim,
        mount=mount,
        stop=f"{allocation.run}/stop",
    )


def _sbatch_word(text: str) -> str:
    """Return one word of an `#SBATCH` line: it takes a backslash before anything."""
    return re.sub(r"([^\w@%+=:,./-])", r"\\\1", text)


def _pod_word(text: str) -> str:
    """Return one word of a shell in a container's `args`, where Kubernetes halves `$$`."""
    return shlex.quote(text).replace("$", "$$")


def _render(template: str, allocation: SchedulerJob, **values: object) -> str:
    words = {"run folder": allocation.run, "folder": allocation.folder}
    checked = [*words.items(), *(("argument", word) for word in allocation.arguments)]
    for what, word in checked:
        if found := unprintable(word):
            raise InputError(
                f"the {what} {word!r} holds {found!r}, which a job's script cannot hold; "
                "set it in the YAML, or choose another name"
            )
    environment = Environment(
        loader=PackageLoader("launcher"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 (no HTML: strings are quoted for the shell and for YAML)
    )
    environment.filters["quote"] = shlex.quote
    environment.filters["pod_word"] = _pod_word
    return environment.get_template(template).render({**vars(allocation), **values})
