"""What is to be trained: the run's files, read and checked once, before any rank starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from launcher.command import train_arguments
from smdt import config as configuration
from smdt.config import Config
from smdt.stages import make_stage
from smdt.stages.aligned import pinned
from smdt.telemetry.metrics import TrainingMetrics
from smdt.train import open_loader, require_data
from smdt.training.run_folder import RunFolder


@dataclass(frozen=True)
class Job:
    """A run that can start.

    Attributes:
        file: the YAML.
        deepspeed_file: DeepSpeed's own JSON, None for its defaults.
        resume: `auto`, `never`, or a checkpoint folder.
        overrides: `section.key=value` each.
        config: what they come to.
        folder: the run folder.
    """

    file: Path
    deepspeed_file: Path | None
    resume: str
    overrides: tuple[str, ...]
    config: Config
    folder: RunFolder

    def arguments(self, resume: str | None = None) -> list[str]:
        """Return the command line of `smdt.train`, with another `--resume` if one is given."""
        files = (self.file, self.deepspeed_file)
        return train_arguments(*files, resume or self.resume, self.overrides)


def open_job(
    file: Path,
    deepspeed_file: Path | None,
    resume: str,
    overrides: Sequence[str],
    ranks: int,
    ranks_per_host: int,
) -> Job:
    """Read a run's files and check all that every rank would stumble over.

    Raises:
        UserError: something is wrong, in one sentence; here it is said once and not by every rank.
    """
    config = configuration.load(file, overrides)
    configuration.load_deepspeed(deepspeed_file)
    configuration.check_ranks(config, ranks, ranks_per_host)
    stage = make_stage(pinned(config))
    config.telemetry.check()
    folder = RunFolder(config.run.out)
    metrics = TrainingMetrics(config.run.name, config.stage, 0)
    loader = open_loader(config, folder, metrics, 0, ranks, torch.device("cpu"))
    require_data(stage, config, loader.split)
    return Job(file, deepspeed_file, resume, tuple(overrides), config, folder)
