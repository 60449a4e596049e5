"""Weights of a stage from a checkpoint, without DeepSpeed's state."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from data_shards.base.errors import InputError
from smdt.models.batch_norm import keep_statistics
from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.run_folder import RunFolder
from smdt.training.loop.stage import Stage


def resolve_checkpoint(trained: Path) -> Path:
    """Return the checkpoint folder of `trained`: itself, or the newest intact one of a run.

    Not the best one of a run: that was chosen on the very split that is evaluated.

    Raises:
        InputError: there is none.
    """
    if not (trained / checkpoint.WEIGHTS).is_file():
        newest = checkpoint.latest_valid(RunFolder(trained).checkpoints)
        if newest is None:
            raise InputError(f"{trained}: neither a checkpoint nor a run that has one")
        return newest
    fault = checkpoint.integrity_error(trained)
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
    match_norms(stage, folder)
    weights = load_file(folder / checkpoint.WEIGHTS)
    for name, module in stage.modules().items():
        computed = computed_buffers(module)
        held = {k: v for k, v in weights_of(name, weights).items() if k not in computed}
        fault = state_dict_mismatch(module.state_dict(), held)
        if fault:
            raise InputError(f"checkpoint {folder}: the weights of '{name}' {fault}")
        module.load_state_dict(held)


def match_norms(stage: Stage, folder: Path) -> None:
    """Make the norms of a new stage those of a checkpoint of the same configuration.

    Where the checkpoint has statistics, its run had a batch norm, even if a new run would not.

    Args:
        stage: its modules are changed in place.
        folder: the checkpoint.
    """
    with safe_open(folder / checkpoint.WEIGHTS, framework="pt") as file:
        names = [*file.keys()]
    for name, module in stage.modules().items():
        prefix = f"{name}."
        keep_statistics(module, {k.removeprefix(prefix) for k in names if k.startswith(prefix)})


def computed_buffers(module: nn.Module) -> set[str]:
    """Return the names of the buffers that a module computes itself.

    Its `state_dict` does not hold them, while checkpoints of earlier versions do.
    """
    return {
        f"{path}.{name}" if path else name
        for path, part in module.named_modules()
        for name in part._non_persistent_buffers_set
    }


def state_dict_mismatch(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """Return in one phrase where weights are not those of a network, empty if they are (pure)."""
    for first, second, phrase in (
        (expected, weights, "lack"),
        (weights, expected, "have an unknown"),
    ):
        names = [name for name in first if name not in second]
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            return f"{phrase} {names[0]}{more}"
    for name, tensor in expected.items():
        if tensor.shape != weights[name].shape:
            return (
                f"have {name} of shape {list(weights[name].shape)}, which is "
                f"{list(tensor.shape)} in this network"
            )
    return ""
