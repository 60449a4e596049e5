"""What is to be trained: the run's files, read and checked once, before any rank starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from launcher.command import train_arguments
from smdt import config as configuration
from smdt.config import Config
from smdt.data.loader import TrainLoader
from smdt.stages import make_stage
from smdt.stages.aligned import pinned
from smdt.stages.continued import check_shapes, examine
from smdt.telemetry.metrics import TrainingMetrics
from smdt.train import open_loader, require_data
from smdt.training.resume import find_checkpoint
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
        ranks: of the whole run.
    """

    file: Path
    deepspeed_file: Path | None
    resume: str
    overrides: tuple[str, ...]
    config: Config
    folder: RunFolder
    ranks: int

    def arguments(self, resume: str | None = None) -> list[str]:
        """Return the command line of `smdt.train`, with another `--resume` if one is given."""
        files = (self.file, self.deepspeed_file)
        return train_arguments(*files, resume or self.resume, self.overrides)

    def examine_checkpoint(self) -> tuple[str, ...]:
        """Look whether the run can go on from its checkpoint, if it has one, as it is asked to.

        Returns:
            What has changed since, a line each.

        Raises:
            UserError: it cannot go on so, or there is no checkpoint to be had.
        """
        settings = configuration.load_deepspeed(self.deepspeed_file)
        found = find_checkpoint(self.folder, self.resume)
        if found is None:
            return ()
        config = pinned(self.config, found)
        loader = _loader(config, self.folder, self.ranks)
        changes = examine(config, settings, found, loader, self.folder, self.ranks)
        check_shapes(make_stage(config), found)
        return changes.lines


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
    require_data(stage, config, _loader(config, folder, ranks).split)
    return Job(file, deepspeed_file, resume, tuple(overrides), config, folder, ranks)


def _loader(config: Config, folder: RunFolder, ranks: int) -> TrainLoader:
    metrics = TrainingMetrics(config.run.name, config.stage, 0)
    return open_loader(config, folder, metrics, 0, ranks, torch.device("cpu"))
