"""The configuration of an alignment run."""

from typing import Literal

from pydantic import field_validator

from smdt.geometry.augment import AugmentConfig
from smdt.geometry.mapping import GeometryConfig
from smdt.losses.adversarial import AlignmentLossConfig
from smdt.models.gan.dual_cgan import DualCganConfig
from smdt.models.gan.unet import check_size
from smdt.semantics.augment import SemanticsConfig
from smdt.stages.base_config import Config
from smdt.training.deepspeed.optimizer import AdamConfig


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
