"""A run's YAML: the components' own configurations, composed and validated.

`smdt/config_file.py` merges the file with `section.key=value`, pydantic checks the result.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from data_shards.errors import InputError
from data_shards.text import to_utf8
from smdt.config_file import escaped, find, read, unreadable
from smdt.evaluation.protocol import ProtocolConfig
from smdt.geometry.aerial import Aerial, AlignmentSourceConfig, RetrievalGeometryConfig
from smdt.geometry.augment import AugmentConfig
from smdt.geometry.look import RetrievalAugmentConfig
from smdt.geometry.mapping import GeometryConfig
from smdt.losses import AlignmentLossConfig, LossConfig, SoftMarginConfig
from smdt.models.dual_cgan import DualCganConfig
from smdt.models.hybrid import HybridConfig, TinyConfig
from smdt.models.segmenter import SegmenterConfig
from smdt.models.timm_tower import TimmConfig
from smdt.models.tower import Size
from smdt.models.two_tower import TwoTowerConfig
from smdt.models.unet import check_size
from smdt.models.weights import InitConfig
from smdt.semantics.augment import SemanticsConfig
from smdt.telemetry.exporter import TelemetryConfig
from smdt.training.engine import AdamConfig, OptimizerConfig, Precision
from smdt.training.trainer import EvaluationConfig, TrainerConfig


class Config(TrainerConfig):
    """One stage of one run: the sections that every stage has."""

    stage: str
    """Which stage of the method the run trains."""
    optimizer: OptimizerConfig = OptimizerConfig()
    init: InitConfig = InitConfig()
    precision: Precision = "bf16"
    """Arithmetic of forward and backward; the optimizer's state is always fp32."""
    telemetry: TelemetryConfig = TelemetryConfig()

    def to_yaml(self) -> str:
        """Return the resolved configuration; `load` of it gives the same."""
        content = escaped(self.model_dump(mode="json", by_alias=True))
        text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
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
    model: TwoTowerConfig = TinyConfig()
    loss: LossConfig = SoftMarginConfig()
    evaluation: RetrievalEvaluationConfig = RetrievalEvaluationConfig()

    @property
    def aerial_size(self) -> tuple[int, int]:
        """Rows and columns of what the aerial tower sees."""
        side = self.geometry.tile_side
        return (side, side) if self.aerial == "raw" else self.geometry.panorama_size

    @property
    def image_sizes(self) -> Mapping[str, Size]:
        """Rows and columns of what each tower sees, by view."""
        return {"ground": self.geometry.panorama_size, "aerial": self.aerial_size}

    @field_validator("alignment")
    @classmethod
    def _is_looked_at(
        cls, alignment: AlignmentSourceConfig, others: ValidationInfo
    ) -> AlignmentSourceConfig:
        aerial = others.data.get("aerial", "aligned")
        if alignment != AlignmentSourceConfig() and aerial != "aligned":
            raise ValueError(
                f"the aerial tower sees no aligned images, since aerial is {aerial}: set "
                "aerial=aligned, or remove `alignment`"
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
        ours = isinstance(model, HybridConfig)
        if others.data.get("aerial") == "raw" and model.shared and ours:
            raise ValueError(
                f"one tower of {model.backbone} can't see square tiles and panoramas: set "
                "model.shared=false, another `aerial`, or a backbone of timm's"
            )
        return model

    @model_validator(mode="after")
    def _statistics_come_from_somewhere(self) -> Self:
        model = self.model
        fixed = isinstance(model, TimmConfig) and model.batch_norm == "fixed"
        if fixed and self.init.weights is None:
            raise ValueError(
                "model.batch_norm: fixed keeps the statistics that init.weights bring: "
                "name a file, or write group"
            )
        return self


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
        path: the YAML file, or the name of a packaged one.
        overrides: `section.key=value` each, applied in order.

    Raises:
        InputError: the file is unreadable, or a key or value is not known; the sentence names it.
    """
    document = read(path, overrides)
    try:
        schema = _schema(document.content.get("stage"))
        return document.validated(schema)
    except ValidationError as error:
        raise InputError(f"configuration {path}: {_explain(schema, error)}") from error
    except ValueError as error:
        raise InputError(f"configuration {path}: {error}") from error


def check_ranks(config: Config, world_size: int, ranks_per_host: int = 1) -> None:
    """Check that the global batch can be cut into equal chunks, and that each rank has a port.

    Args:
        config: the run.
        world_size: ranks of the run.
        ranks_per_host: the most that one host has of them.

    Raises:
        InputError: it cannot, or not all have one; the sentence gives values that can be.
    """
    config.telemetry.check_ports(ranks_per_host)
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
    """Read a DeepSpeed configuration file or a packaged one; none is ZeRO 0 with its defaults.

    Raises:
        InputError: the file is unreadable or no JSON object.
    """
    if path is None:
        return {}
    try:
        content = json.loads(to_utf8(path, find(path).read_bytes()))
    except OSError as error:
        raise InputError(f"DeepSpeed configuration {path}: {unreadable(path, error)}") from error
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
    path, known = _walk(schema, first["loc"])
    key = ".".join(str(part) for part in path)
    if first["type"] != "extra_forbidden":
        message = first["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    nearest = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.0)
    return f"unknown key '{key}'" + (f"; did you mean '{nearest[0]}'?" if nearest else "")


def _walk(
    schema: type[BaseModel], location: Sequence[str | int]
) -> tuple[list[str | int], list[str]]:
    """Follow pydantic's location of an error into `schema`.

    Where a section can be one of several models, the location holds the tag of the one that was
    meant, which is no key of the YAML.

    Returns:
        The location without tags, and the known keys of the section that holds its last key.
    """
    *parents, last = location or ("",)
    path: list[str | int] = []
    section: type[BaseModel] | None = schema
    variants: Mapping[str, type[BaseModel]] = {}
    for part in parents:
        if str(part) in variants:
            section, variants = variants[str(part)], {}
            continue
        path.append(part)
        fields = _fields(section)
        variants = _models(fields[str(part)].annotation) if str(part) in fields else {}
        section = next(iter(variants.values()), None)
    return [*path, last], [*_fields(section)]


def _fields(section: type[BaseModel] | None) -> dict[str, FieldInfo]:
    """Return the keys of a section with what each may hold."""
    if section is None:
        return {}
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _models(annotation: object) -> dict[str, type[BaseModel]]:
    """Return the models that an annotation names, by what pydantic calls them in locations.

    That is the tag, or the first value of a model's `Literal`, by which it is chosen.
    """
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        literals = [get_args(f.annotation) for f in annotation.model_fields.values()]
        chosen_by = [args[0] for args in literals if args and isinstance(args[0], str)]
        return {str(next(iter(chosen_by), annotation.__name__)): annotation}
    found: dict[str, type[BaseModel]] = {}
    arguments = get_args(annotation)
    tags = [argument.tag for argument in arguments if isinstance(argument, Tag)]
    for argument in arguments:
        inside = _models(argument)
        found |= dict(zip(tags, inside.values(), strict=False)) if tags else inside
    return found
