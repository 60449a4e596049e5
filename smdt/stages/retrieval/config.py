"""The configuration of a retrieval run."""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import ValidationInfo, field_validator, model_validator

from smdt.evaluation.protocol import ProtocolConfig
from smdt.geometry.aerial import Aerial, AlignmentSourceConfig, RetrievalGeometryConfig
from smdt.geometry.augment import AugmentConfig
from smdt.geometry.field_of_view import RetrievalAugmentConfig
from smdt.losses.contrastive import LossConfig, SoftMarginConfig
from smdt.models.towers.hybrid import HybridConfig, TinyConfig
from smdt.models.towers.timm_tower import TimmConfig
from smdt.models.towers.tower import Size
from smdt.models.towers.two_tower import TwoTowerConfig
from smdt.semantics.augment import SemanticsConfig
from smdt.stages.base_config import Config
from smdt.training.loop.trainer import EvaluationConfig


class RetrievalEvaluationConfig(EvaluationConfig, ProtocolConfig):
    """Schedule, split and protocol of a retrieval's own evaluations."""


class RetrievalConfig(Config):
    """A run of the retrieval stage."""

    stage: Literal["retrieval"]
    aerial: Aerial = "mixed"
    """Input of the aerial tower: the raw tile, a mapping of it (`docs/mapping.md`), or an aligned
    image (`docs/alignment.md`)."""
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
                "model.shared=false, another `aerial`, or a timm backbone"
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
