"""From what the user wants to start to the argv and environment of `deepspeed` (pure)."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smdt.training.stopping import LAUNCHER


@dataclass(frozen=True)
class LocalPlan:
    """A run on this machine alone.

    Attributes:
        config: YAML of the run.
        deepspeed_config: DeepSpeed's own JSON, None for its defaults.
        ranks: processes to start.
        resume: `auto`, `never`, or a checkpoint folder.
        overrides: `section.key=value` each.
        port: free TCP port of the rendezvous.
        cores: cores of this machine, to be shared by the ranks.
        has_gpu: whether ranks train on GPUs.
    """

    config: Path
    deepspeed_config: Path | None
    ranks: int
    resume: str
    overrides: Sequence[str]
    port: int
    cores: int
    has_gpu: bool


def local_command(plan: LocalPlan) -> list[str]:
    """Return the argv that starts the plan through DeepSpeed's launcher."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--hostfile", ""]
    ranks = ["--num_gpus", str(plan.ranks), "--master_port", str(plan.port)]
    arguments = ["--module", "smdt.train", "--config", str(plan.config), "--resume", plan.resume]
    if plan.deepspeed_config is not None:
        arguments += ["--deepspeed_config", str(plan.deepspeed_config)]
    return [*launcher, *ranks, *arguments, *plan.overrides]


def local_environment(
    plan: LocalPlan, inherited: Mapping[str, str], launcher_pid: int
) -> dict[str, str]:
    """Return the environment of that argv: each rank gets its part of the cores."""
    ours = {"OMP_NUM_THREADS": str(max(1, plan.cores // plan.ranks))}
    if not plan.has_gpu:
        ours["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed warns, in every process, that it found none
    return {**ours, **inherited, LAUNCHER: str(launcher_pid)}
