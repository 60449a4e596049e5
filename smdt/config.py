"""A run's YAML: the components' own configurations, composed and validated.

OmegaConf merges the file with `section.key=value`, pydantic checks the result.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError, ValidationInfo, field_validator
from yaml import YAMLError

from data_shards.errors import InputError
from smdt.evaluation.protocol import ProtocolConfig
from smdt.geometry.aerial import Aerial, AlignmentSourceConfig, RetrievalGeometryConfig
from smdt.geometry.augment import AugmentConfig
from smdt.geometry.look import RetrievalAugmentConfig
from smdt.geometry.mapping import GeometryConfig
from smdt.losses import AlignmentLossConfig, LossConfig, SoftMarginConfig
from smdt.models.dual_cgan import DualCganConfig
from smdt.models.segmenter import SegmenterConfig
from smdt.models.two_tower import TwoTowerConfig
from smdt.models.unet import check_size
from smdt.semantics.augment import SemanticsConfig
from smdt.telemetry.exporter import TelemetryConfig
from smdt.training.engine import AdamConfig, OptimizerConfig, Precision
from smdt.training.trainer import EvaluationConfig, TrainerConfig


class Config(TrainerConfig):
    """One stage of one run: the sections that every stage has."""

    stage: str
    """Which stage of the method the run trains."""
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Precision = "bf16"
    """Arithmetic of forward and backward; the optimizer's state is always fp32."""
    telemetry: TelemetryConfig = TelemetryConfig()

    def to_yaml(self) -> str:
        """Return the resolved configuration; `load` of it gives the same."""
        text: str = yaml.safe_dump(self.model_dump(mode="json", by_alias=True), sort_keys=False)
        return text


class RetrievalEvaluationConfig(EvaluationConfig, ProtocolConfig):
    """When a retrieval evaluates itself, on what, and by which rules."""


class RetrievalConfig(Config):
    """A run of the retrieval stage."""

    stage: Literal["retrieval"]
    aerial: Aerial = "mixed"
    """What the aerial tower sees: the tile as it is, a mapping of it (`docs/mapping.md`), or what
    an alignment makes of it (`docs/alignment.md`)."""
    alignment: AlignmentSourceConfig = AlignmentSourceConfig()
    geometry: RetrievalGeometryConfig = RetrievalGeometryConfig()
    augment: RetrievalAugmentConfig = RetrievalAugmentConfig()
    semantics: SemanticsConfig = SemanticsConfig()
    model: TwoTowerConfig = TwoTowerConfig()
    loss: LossConfig = SoftMarginConfig()
    evaluation: RetrievalEvaluationConfig = RetrievalEvaluationConfig()

    @property
    def aerial_size(self) -> tuple[int, int]:
        """Rows and columns of what the aerial tower sees."""
        side = self.geometry.tile_side
        return (side, side) if self.aerial == "raw" else self.geometry.panorama_size

    @field_validator("alignment")
    @classmethod
    def _is_looked_at(
        cls, alignment: AlignmentSourceConfig, others: ValidationInfo
    ) -> AlignmentSourceConfig:
        aerial = others.data.get("aerial", "aligned")
        if alignment != AlignmentSourceConfig() and aerial != "aligned":
            raise ValueError(
                f"the aerial tower sees no aligned images, since aerial is {aerial}: set "
                "aerial=aligned, or leave `alignment` away"
            )
        return alignment

    @field_validator("augment")
    @classmethod
    def _can_be_done_to_tiles(cls, augment: AugmentConfig, others: ValidationInfo) -> AugmentConfig:
        if others.data.get("aerial") == "raw" and augment.turn is True:
            raise ValueError(
                "a raw tile can follow no turn of its panorama but quarter turns: set "
                "augment.turn=quarters, or another `aerial`"
            )
        return augment

    @field_validator("model")
    @classmethod
    def _can_be_shared(cls, model: TwoTowerConfig, others: ValidationInfo) -> TwoTowerConfig:
        if others.data.get("aerial") == "raw" and model.shared:
            raise ValueError(
                "one tower can't see square tiles and panoramas: set model.shared=false, or "
                "another `aerial`"
            )
        return model


class SegmentationConfig(Config):
    """A run of the segmentation stage."""

    stage: Literal["segmentation"]
    augment: AugmentConfig = AugmentConfig()
    model: SegmenterConfig = SegmenterConfig()


class AlignmentConfig(Config):
    """A run of the alignment stage."""

    stage: Literal["alignment"]
    geometry: GeometryConfig = GeometryConfig()
    augment: AugmentConfig = AugmentConfig()
    semantics: SemanticsConfig = SemanticsConfig()
    model: DualCganConfig = DualCganConfig()
    loss: AlignmentLossConfig = AlignmentLossConfig()
    optimizer: AdamConfig = AdamConfig()

    @field_validator("geometry")
    @classmethod
    def _fits_the_generators(cls, geometry: GeometryConfig) -> GeometryConfig:
        check_size(*geometry.panorama_size)
        return geometry


SCHEMAS: Mapping[str, type[Config]] = {
    "retrieval": RetrievalConfig,
    "segmentation": SegmentationConfig,
    "alignment": AlignmentConfig,
}
"""What a YAML may hold, by its `stage`."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a run's configuration.

    Args:
        path: the YAML file.
        overrides: `section.key=value` each, applied in order.

    Raises:
        InputError: the file is unreadable, or a key or value is not known; the sentence names it.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
        content = OmegaConf.to_container(merged, resolve=True)
    except OSError as error:
        raise InputError(f"configuration {path}: {error.strerror}") from error
    except (YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"configuration {path}: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"configuration {path}: not a mapping of sections")
    try:
        schema = _schema(content.get("stage"))
        return schema.model_validate(content)
    except ValidationError as error:
        raise InputError(f"configuration {path}: {_explain(schema, error)}") from error
    except ValueError as error:
        raise InputError(f"configuration {path}: {error}") from error


def check_ranks(config: Config, world_size: int) -> None:
    """Check that the global batch can be cut into equal chunks on `world_size` ranks.

    Raises:
        InputError: it cannot; the sentence gives a size that can.
    """
    batch = config.batch
    parts = world_size * batch.chunks
    if batch.global_batch % parts:
        below = batch.global_batch // parts * parts
        fitting = " or ".join(str(size) for size in (below, below + parts) if size)
        raise InputError(
            f"batch.global is {batch.global_batch}, which {world_size} ranks x {batch.chunks} "
            f"chunks do not divide; set batch.global to {fitting}"
        )


def load_deepspeed(path: Path | None) -> dict[str, Any]:
    """Read a DeepSpeed configuration file; none is ZeRO 0 with DeepSpeed's defaults.

    Raises:
        InputError: the file is unreadable or no JSON object.
    """
    try:
        content = {} if path is None else json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"DeepSpeed configuration {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"DeepSpeed configuration {path}: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"DeepSpeed configuration {path}: not a JSON object")
    return content


def _schema(stage: object) -> type[Config]:
    """Return the schema of a stage.

    Raises:
        ValueError: there is no such stage.
    """
    if stage not in SCHEMAS:
        names = ", ".join(SCHEMAS)
        raise ValueError(f"stage: '{stage}' is no stage; write one of {names}")
    return SCHEMAS[str(stage)]


def _explain(schema: type[Config], error: ValidationError) -> str:
    """Say the first thing that is wrong, with its key and, for an unknown one, the nearest."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return f"{key}: {first['msg'].removeprefix('Value error, ')}"
    known = _known_keys(schema, first["loc"][:-1])
    nearest = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.0)
    return f"unknown key '{key}'" + (f"; did you mean '{nearest[0]}'?" if nearest else "")


def _known_keys(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """Return the keys of the section at `path` below `model`."""
    for name in path:
        fields: Mapping[str, Any] = {
            field.alias or key: field.annotation for key, field in model.model_fields.items()
        }
        inside = fields.get(str(name))
        candidates = [inside, *get_args(inside)]
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not models:
            return []
        model = models[0]
    return [field.alias or key for key, field in model.model_fields.items()]


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
