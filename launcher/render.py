"""Slurm's batch script and Kubernetes' JobSet of a run (pure)."""

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from data_shards.errors import InputError


@dataclass(frozen=True)
class Allocation:
    """What a scheduler is to start.

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


def slurm_script(allocation: Allocation, options: Sequence[str]) -> str:
    """Return the batch script.

    Args:
        allocation: what to start.
        options: further ones of `sbatch`, such as `--partition=gpu`.

    Raises:
        InputError: an option is none.
    """
    for option in options:
        if re.fullmatch(r"--[a-z-]+(=\S+)?", option) is None:
            raise InputError(f"--option {option!r} is none of sbatch; write --name=value")
    command = shlex.join([sys.executable, "-m", "smdt.train", *allocation.arguments])
    return _render("slurm.sh", allocation, command=command, options=options, python=sys.executable)


def jobset(allocation: Allocation, *, image: str, python: str, claim: str, mount: str) -> str:
    """Return the JobSet.

    Args:
        allocation: what to start.
        image: container image with SMDT.
        python: interpreter in it.
        claim: persistent volume claim that all pods may write.
        mount: where it is mounted; shards and run folder are below.

    Raises:
        InputError: the run folder is elsewhere.
    """
    if not f"{allocation.run}/".startswith(f"{mount.rstrip('/')}/"):
        raise InputError(
            f"the run folder {allocation.run} is not below {mount}, where the pods see the claim "
            f"{claim}; set run.out to a folder there, or another --mount"
        )
    arguments = shlex.join(["smdt.train", *allocation.arguments])
    name = re.sub(r"[^a-z0-9]+", "-", allocation.name.lower()).strip("-")
    return _render(
        "jobset.yaml",
        allocation,
        arguments=arguments,
        name=name,
        image=image,
        python=python,
        claim=claim,
        mount=mount,
        stop=f"{allocation.run}/stop",
    )


def _render(template: str, allocation: Allocation, **values: object) -> str:
    environment = Environment(
        loader=PackageLoader("launcher"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 (no HTML: strings are quoted for the shell and for YAML)
    )
    environment.filters["quote"] = shlex.quote
    return environment.get_template(template).render({**vars(allocation), **values})
