"""The configuration of a segmentation run."""

from typing import Literal

from smdt.geometry.augment import AugmentConfig
from smdt.models.segmenter import SegmenterConfig
from smdt.stages.base_config import Config


class SegmentationConfig(Config):
    """A run of the segmentation stage."""

    stage: Literal["segmentation"]
    augment: AugmentConfig = AugmentConfig()
    model: SegmenterConfig = SegmenterConfig()
