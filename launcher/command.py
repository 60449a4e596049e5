"""From what the user wants to start to the argv and environment of `deepspeed` (pure)."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smdt.training.stopping import LAUNCHER


@dataclass(frozen=True)
class LocalPlan:
    """A module on some ranks of this machine alone.

    Attributes:
        module: what each rank runs.
        arguments: of its command line.
        ranks: processes to start.
        port: free TCP port of the rendezvous.
        cores: cores of this machine, to be shared by the ranks.
        has_gpu: whether ranks train on GPUs.
    """

    module: str
    arguments: Sequence[str]
    ranks: int
    port: int
    cores: int
    has_gpu: bool


def local_command(plan: LocalPlan) -> list[str]:
    """Return the argv that starts the plan through DeepSpeed's launcher."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--hostfile", ""]
    ranks = ["--num_gpus", str(plan.ranks), "--master_port", str(plan.port)]
    return [*launcher, *ranks, "--module", plan.module, *plan.arguments]


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


def local_environment(
    plan: LocalPlan, inherited: Mapping[str, str], launcher_pid: int
) -> dict[str, str]:
    """Return the environment of that argv: each rank gets its part of the cores."""
    ours = {"OMP_NUM_THREADS": str(max(1, plan.cores // plan.ranks))}
    if not plan.has_gpu:
        ours["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed warns, in every process, that it found none
    return {**ours, **inherited, LAUNCHER: str(launcher_pid)}
