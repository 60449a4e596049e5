"""The weights that a run starts from (`init`), and the account of what was made of them."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_shards.base.errors import InputError
from smdt.models.towers.weights import LoadReport, load_tensors, load_towers, read
from smdt.stages import config as configuration
from smdt.stages.base_config import Config
from smdt.stages.retrieval.config import RetrievalConfig
from smdt.stages.retrieval.stage import RetrievalStage
from smdt.stages.weights import match_norms, resolve_checkpoint, weights_of
from smdt.training.checkpoints import checkpoint
from smdt.training.loop.stage import Stage

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Initialisation:
    """Load reports of a run's initial weights.

    Attributes:
        source: the file or the checkpoint.
        fits: of each module or tower, by its name.
    """

    source: str
    fits: Mapping[str, LoadReport]

    def to_json(self) -> dict[str, Any]:
        """Return the content of `init.json`."""
        return {
            "source": self.source,
            **{name: asdict(report) for name, report in self.fits.items()},
        }

    def lines(self) -> list[str]:
        """Say for each module how much was loaded, and name what was not."""
        said = []
        for name, one in self.fits.items():
            parts = [f"{len(one.loaded)} tensors of {name} from {self.source}"]
            if one.resized:
                parts.append(f"interpolated: {', '.join(one.resized)}")
            if one.fresh:
                parts.append(f"not in it, so random: {', '.join(one.fresh)}")
            if one.unused:
                parts.append(f"in it and not used: {', '.join(one.unused)}")
            said.append("; ".join(parts))
        return said


def initialise(stage: Stage, config: Config) -> Initialisation | None:
    """Give a stage the weights that its configuration names; every rank reads them for itself.

    Returns:
        What was loaded, None if random weights are asked for.

    Raises:
        InputError: they cannot be read or do not fit.
    """
    if config.init.weights is None:
        return None
    path = Path(config.init.weights)
    if path.name == checkpoint.WEIGHTS and (path.parent / checkpoint.CONFIG).is_file():
        path = path.parent  # whose configuration says what its positions are of
    made = _from_run(stage, path) if path.is_dir() else _from_file(stage, path)
    lost = [n for one in made.fits.values() for n in one.fresh if n.endswith("running_mean")]
    if lost:
        raise InputError(
            f"weights {made.source} have no statistics for batch norms ({lost[0]} …): "
            "set model.batch_norm=group"
        )
    for line in made.lines():
        _log.info("%s", line)
    return made


def _from_file(stage: Stage, path: Path) -> Initialisation:
    if not isinstance(stage, RetrievalStage):
        raise InputError(
            f"init.weights: {path} is neither a run nor a checkpoint, "
            f"which the stage {stage.name!r} needs"
        )
    return Initialisation(str(path), load_towers(stage.towers, read(path), str(path)))


def _from_run(stage: Stage, path: Path) -> Initialisation:
    folder = resolve_checkpoint(path)
    source = configuration.load(folder / checkpoint.CONFIG)
    if source.stage != stage.name:
        raise InputError(
            f"init.weights: {folder} is of stage {source.stage!r}, and this run of {stage.name!r}"
        )
    tensors = read(folder / checkpoint.WEIGHTS)
    if isinstance(stage, RetrievalStage):
        assert isinstance(source, RetrievalConfig), "its stage says so"
        sizes = source.image_sizes
        return Initialisation(str(folder), load_towers(stage.towers, tensors, str(folder), sizes))
    match_norms(stage, folder)
    fits = {
        name: load_tensors(module, weights_of(name, tensors), str(folder))
        for name, module in stage.modules().items()
    }
    return Initialisation(str(folder), fits)
