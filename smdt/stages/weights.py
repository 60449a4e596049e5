"""What a checkpoint of ours holds for use: the weights of a stage, without DeepSpeed's state."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from data_shards.errors import InputError
from smdt.training import checkpoint
from smdt.training.run_folder import RunFolder
from smdt.training.stage import Stage


def find_weights(trained: Path) -> Path:
    """Return the checkpoint folder that `trained` means: itself, or the newest whole one of a run.

    Not the best one of a run: that was chosen on the very split that is evaluated.

    Raises:
        InputError: there is none.
    """
    if not (trained / checkpoint.WEIGHTS).is_file():
        newest = checkpoint.newest_good(RunFolder(trained).checkpoints)
        if newest is None:
            raise InputError(f"{trained}: neither a checkpoint nor a run that has one")
        return newest
    fault = checkpoint.damage(trained)
    if fault:
        raise InputError(f"checkpoint {trained}: {fault}; name another one")
    return trained


def weights_of(module: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return one module's share of a checkpoint's weights, by its own names."""
    prefix = f"{module}."
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def load_weights(stage: Stage, folder: Path) -> None:
    """Give a stage the weights of a checkpoint folder, fp32.

    Raises:
        InputError: they do not fit.
    """
    weights = load_file(folder / checkpoint.WEIGHTS)
    for name, module in stage.modules().items():
        try:
            module.load_state_dict(weights_of(name, weights))
        except RuntimeError as error:
            raise InputError(f"checkpoint {folder}: {error}") from error
