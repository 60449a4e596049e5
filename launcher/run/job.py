"""The training job of a launch: configuration and inputs, checked before any rank starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data_shards.base.store import location
from launcher.run.command import train_arguments
from smdt.data.loader import TrainLoader
from smdt.data.pipeline import require_dali
from smdt.stages import config as configuration
from smdt.stages.base_config import Config
from smdt.stages.registry import make_stage
from smdt.stages.resume_checks import check_resume, check_shapes
from smdt.stages.retrieval.aligned import pin_alignment_weights
from smdt.stages.setup import open_loader, require_data
from smdt.telemetry.metrics import TrainingMetrics
from smdt.training.checkpoints.resume import find_checkpoint
from smdt.training.checkpoints.run_folder import RunFolder
from smdt.training.deepspeed.settings import require_deepspeed
from smdt.training.loop.stage import Stage


@dataclass(frozen=True)
class TrainJob:
    """A run that can start.

    Attributes:
        file: the YAML.
        deepspeed_file: DeepSpeed's own JSON, None for its defaults.
        resume: `auto`, `never`, or a checkpoint folder.
        overrides: `section.key=value` each.
        config: the resulting configuration.
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

    @property
    def inputs(self) -> dict[str, str]:
        """Return the folders, files and URLs that the ranks will open, by configuration key."""
        tls, alignment = self.config.telemetry.tls, getattr(self.config, "alignment", None)
        files = {} if tls is None else tls.model_dump(mode="json")
        found = {"data.shards": self.config.data.shards}
        found |= {"alignment.checkpoint": alignment.checkpoint} if alignment is not None else {}
        found |= {f"telemetry.tls.{key}": path for key, path in files.items()}
        return {key: path for key, path in found.items() if path is not None}

    def check(self) -> None:
        """Check all that every rank would stumble over.

        Raises:
            UserError: something is wrong, in one sentence; here it is said once, not by every rank.
        """
        require_deepspeed()
        require_dali()
        self.config.telemetry.check()
        config = pin_alignment_weights(self.config)
        self._check_data(config, make_stage(config))

    def check_local_inputs(self) -> list[str]:
        """Check a run that will start elsewhere: its configuration, and the inputs that are here.

        Returns:
            A sentence for each input that is not; a store's address is not opened.

        Raises:
            UserError: something is wrong.
        """
        absent = {key: path for key, path in self.inputs.items() if not _is_here(path)}
        if not any(key.startswith("telemetry.") for key in absent):
            self.config.telemetry.check()
        if not absent.keys() & {"data.shards", "alignment.checkpoint"}:
            config = pin_alignment_weights(self.config)
            self._check_data(config, make_stage(config))
        elif getattr(self.config, "aerial", None) != "aligned":  # else a stage needs both
            make_stage(self.config)
        return [
            f"not checked here: {key} {path} is not on this machine" for key, path in absent.items()
        ]

    def examine_checkpoint(self) -> tuple[str, ...]:
        """Check that the run can resume from its checkpoint, if any, with this configuration.

        Returns:
            What has changed since, a line each.

        Raises:
            UserError: it cannot resume with this configuration, or there is no usable checkpoint.
        """
        settings = configuration.load_deepspeed(self.deepspeed_file)
        found = find_checkpoint(self.folder, self.resume)
        if found is None:
            return ()
        config = pin_alignment_weights(self.config, found)
        loader = _loader(config, self.folder, self.ranks)
        changes = check_resume(config, settings, found, loader, self.folder, self.ranks)
        check_shapes(make_stage(config), found)
        return changes.lines

    def _check_data(self, config: Config, stage: Stage) -> None:
        require_data(stage, config, _loader(config, self.folder, self.ranks).split)


def open_job(
    file: Path,
    deepspeed_file: Path | None,
    resume: str,
    overrides: Sequence[str],
    ranks: int,
    ranks_per_host: int,
) -> TrainJob:
    """Read a run's configuration; whether its inputs fit is for `TrainJob.check`.

    Raises:
        InputError: the configuration is wrong.
    """
    config = configuration.load(file, overrides)
    configuration.load_deepspeed(deepspeed_file)
    configuration.check_ranks(config, ranks, ranks_per_host)
    folder = RunFolder(config.run.out)
    return TrainJob(file, deepspeed_file, resume, tuple(overrides), config, folder, ranks)


def _is_here(path: str) -> bool:
    """Whether a folder or file is on this machine.

    Raises:
        InputError: it is an address that nothing can open.
    """
    where = location(path)
    return isinstance(where, Path) and where.exists()


def _loader(config: Config, folder: RunFolder, ranks: int) -> TrainLoader:
    metrics = TrainingMetrics(config.run.name, config.stage, 0)
    return open_loader(config, folder, metrics, 0, ranks, torch.device("cpu"))
