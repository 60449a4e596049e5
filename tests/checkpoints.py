"""Checkpoints of stages that were not trained."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from smdt.stages.alignment.config import AlignmentConfig
from smdt.stages.alignment.stage import AlignmentStage
from smdt.stages.base_config import Config
from smdt.stages.registry import make_stage
from smdt.training.checkpoints import checkpoint
from smdt.training.loop.stage import Stage


def save_untrained(folder: Path, config: Config, seed: int = 0) -> Stage:
    """Write a published checkpoint with a stage's first weights; return the stage."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    stage = make_stage(config)
    weights = {
        f"{name}.{key}": tensor
        for name, module in stage.modules().items()
        for key, tensor in module.state_dict().items()
    }
    save_file(weights, folder / checkpoint.WEIGHTS)
    (folder / checkpoint.CONFIG).write_text(config.to_yaml())
    checkpoint._seal(folder)
    return stage


@dataclass(frozen=True)
class UntrainedAlignment:
    """A checkpoint of the alignment stage, and what it holds."""

    folder: Path
    config: AlignmentConfig
    stage: AlignmentStage
    size: tuple[int, int]

    @classmethod
    def save(cls, shards: Path, root: Path, seed: int = 1) -> "UntrainedAlignment":
        """Write one below `root`, with feedback, of images half as wide as the small world's."""
        size = (32, 64)
        config = AlignmentConfig.model_validate(
            {
                "stage": "alignment",
                "run": {"name": "test", "out": str(root / "run")},
                "data": {"shards": str(shards)},
                "geometry": {"panorama_size": size, "elevation_deg": (-30, 30)},
                "model": {"generator_width": 4, "discriminator_width": 2, "feedback_loops": 2},
            }
        )
        folder = root / "run" / "checkpoints" / "step-00000001"
        stage = save_untrained(folder, config, seed)
        assert isinstance(stage, AlignmentStage)
        return cls(folder, config, stage, size)
