"""Checkpoints of stages that were not trained."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from smdt.config import Config
from smdt.stages import make_stage
from smdt.training import checkpoint
from smdt.training.stage import Stage


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
