"""A trained stage, from a run or a checkpoint: weights only, no DeepSpeed state."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from data_shards.base.errors import InputError
from data_shards.format import manifest
from smdt.evaluation.protocol import PROTOCOLS, protocol_of
from smdt.stages import config as configuration
from smdt.stages.alignment.stage import AlignmentStage
from smdt.stages.base_config import Config
from smdt.stages.evaluation import evaluate_stage
from smdt.stages.registry import make_stage
from smdt.stages.retrieval.config import RetrievalConfig
from smdt.stages.weights import load_weights, resolve_checkpoint
from smdt.training.checkpoints import checkpoint
from smdt.training.loop.stage import Evaluation, Stage


@dataclass(frozen=True)
class EvaluationOverrides:
    """Rules of a retrieval's evaluation that override those of the run (None: the run's)."""

    protocol: str | None = None
    fov_deg: float | None = None
    unknown_heading: bool | None = None

    def apply(self, config: Config) -> Config:
        """Return a configuration by these rules.

        Raises:
            InputError: it is of another stage, or there is no such rule.
        """
        changes = {name: value for name, value in asdict(self).items() if value is not None}
        if not changes:
            return config
        if not isinstance(config, RetrievalConfig):
            raise InputError(
                "--protocol, --fov and --unknown-heading are about retrieval, and this run is of "
                f"stage {config.stage!r}"
            )
        try:
            section = config.evaluation.model_validate(
                {**config.evaluation.model_dump(), **changes}
            )
        except ValidationError as error:
            first = error.errors()[0]
            flag = "--fov" if "fov_deg" in first["loc"] else "--protocol"
            raise InputError(f"{flag}: {first['msg']}") from None
        return config.model_copy(update={"evaluation": section})

    def split(self, shards: str) -> str:
        """Return the default split of an evaluation.

        Raises:
            InputError: there are no such shards.
        """
        if self.protocol in PROTOCOLS:
            return PROTOCOLS[str(self.protocol)].split
        described = manifest.load(shards)
        return protocol_of(described.name, described.source.get("area"), None).split


NO_OVERRIDES = EvaluationOverrides()


def load_config(folder: Path, alignment: Path | None = None) -> Config:
    """Return the configuration of a checkpoint.

    Args:
        folder: the checkpoint.
        alignment: where the generators of its aligned images are; None: where its run had them.

    Raises:
        InputError: there is an `alignment`, and its towers see no aligned images.
    """
    config = configuration.load(folder / checkpoint.CONFIG)
    if alignment is None:
        return config
    if not isinstance(config, RetrievalConfig) or config.aerial != "aligned":
        raise InputError(f"--alignment: {folder} sees no aligned images; omit the option")
    moved = config.alignment.model_copy(update={"checkpoint": str(alignment)})
    return config.model_copy(update={"alignment": moved})


def load_stage(
    trained: Path, alignment: Path | None = None, asked: EvaluationOverrides = NO_OVERRIDES
) -> tuple[Config, Stage]:
    """Return the configuration and the stage of a checkpoint or run, weights loaded, fp32.

    Raises:
        InputError: no checkpoint, or one whose weights do not fit its configuration.
    """
    return _load(resolve_checkpoint(trained), alignment, asked)


def _load(folder: Path, alignment: Path | None, asked: EvaluationOverrides) -> tuple[Config, Stage]:
    config = asked.apply(load_config(folder, alignment))
    stage = make_stage(config)
    load_weights(stage, folder)
    return config, stage


def evaluate_trained(
    trained: Path,
    shards: str,
    split: str,
    max_missing: int,
    panogan_compat: bool = False,
    alignment: Path | None = None,
    asked: EvaluationOverrides = NO_OVERRIDES,
) -> Evaluation:
    """Evaluate a checkpoint or run on a split, with all ranks of the process group if there is one.

    Returns:
        Its details begin with the checkpoint's `step`, None where its folder is not named by one.

    Raises:
        InputError: as `load_stage`; no alignment, or one of other weights; or `panogan_compat` for
            a stage that makes no images.
    """
    folder = resolve_checkpoint(trained)
    config, stage = _load(folder, alignment, asked)
    if panogan_compat and stage.name != AlignmentStage.name:
        raise InputError(
            f"--panogan-compat is about generated images, and {trained} is of stage {stage.name!r}"
        )
    found = evaluate_stage(config, stage, shards, split, max_missing, panogan_compat)
    return replace(found, details={"step": checkpoint.named_step(folder), **found.details})
