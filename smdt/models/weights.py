"""Weights to start from: read from a file, given the names of a module, fitted and accounted for.

Google's `.npz` of R50+ViT-B/16 (Dosovitskiy et al. 2021), safetensors of timm's, safetensors of
ours. Nothing that is read is unpickled.

H rows and W columns of a grid of patches, N patches, P tokens before them, D width of a token.
"""

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from data_shards.errors import InputError
from smdt.models.hybrid import HybridTower
from smdt.models.timm_tower import TimmTower
from smdt.models.tower import Size, Tower
from smdt.models.two_tower import TwoTower
from smdt.models.weight_names import Places, from_google, from_timm, is_google


class InitConfig(BaseModel):
    """What a run starts from; a run that goes on from its own checkpoint ignores it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: str | None = None
    """A run or a checkpoint of the same stage; for retrieval also Google's `.npz` of R50+ViT-B/16
    or a safetensors file, timm's or ours. By default weights are random."""


LOG_SCALE = "log_scale"
"""What `TwoTower` calls the parameter that its loss learns."""


@dataclass(frozen=True)
class Fit:
    """What became of the weights of one module.

    Attributes:
        loaded: the module's names that got a value.
        resized: those of them whose positions were interpolated to another grid.
        fresh: the module's names that kept their random value.
        unused: the file's names that the module has no place for.
    """

    loaded: list[str]
    resized: list[str]
    fresh: list[str]
    unused: list[str]


def read(path: Path) -> dict[str, Tensor]:
    """Read the tensors of an `.npz` or safetensors file.

    Raises:
        InputError: it is neither, or damaged.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        if path.suffix == ".safetensors":
            return load_file(path)
    except (OSError, ValueError, TypeError, SafetensorError, zipfile.BadZipFile) as error:
        raise InputError(f"weights {path}: {str(error).strip().splitlines()[0]}") from error
    raise InputError(f"weights {path}: neither a folder nor an .npz or .safetensors file")


def unchanged(name: str, tensor: Tensor) -> Places:
    """Say that a file's names are the module's."""
    return {name: tensor}


def fit(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    source: str,
    places_of: Callable[[str, Tensor], Places] = unchanged,
    on_grid: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor,
) -> Fit:
    """Copy tensors into a module.

    Args:
        module: of any dtype.
        tensors: by a file's names.
        source: what the file is called in errors.
        places_of: a file's name and tensor to the module's names and tensors.
        on_grid: a module's name and tensor to the tensor on the module's grid of positions.

    Raises:
        InputError: a tensor has another shape than its place, or none has a place.
    """
    state = module.state_dict()
    loaded, resized, unused = [], [], []
    for name, tensor in tensors.items():
        try:
            places = {k: v for k, v in places_of(name, tensor).items() if k in state}
            for place, value in places.items():
                fitted = on_grid(place, value)
                if fitted.shape != state[place].shape:
                    raise ValueError(
                        f"{place} has shape {list(state[place].shape)} in this network"
                    )
                with torch.no_grad():
                    state[place].copy_(fitted)
                loaded.append(place)
                if fitted is not value:
                    resized.append(place)
        except ValueError as error:
            raise InputError(
                f"weights {source}: '{name}' of shape {list(tensor.shape)} does not fit: {error}"
            ) from error
        if not places:
            unused.append(name)
    if not loaded:
        raise InputError(
            f"weights {source}: nothing fits; its {len(tensors)} tensors are called "
            f"{', '.join([*tensors][:3])} …, this network's {', '.join([*state][:3])} …"
        )
    filled = set(loaded)
    return Fit(loaded, resized, [name for name in state if name not in filled], unused)


def fit_towers(
    model: TwoTower,
    tensors: Mapping[str, Tensor],
    source: str,
    image_sizes: Mapping[str, Size] | None = None,
) -> dict[str, Fit]:
    """Copy tensors into both towers: a file of one network's into each of them.

    Args:
        model: the towers.
        tensors: of two towers of ours, or of one network of ours, timm's or Google's.
        source: what the file is called in errors.
        image_sizes: of the images that towers of ours were trained on, by view; the positions of
            a network that nobody says this of are those of a square image.

    Returns:
        What became of each tower's weights, by view, and of a learned temperature, as `loss`.

    Raises:
        InputError: they do not fit.
    """
    sizes = image_sizes or {}
    fits = {
        "ground": _fit_tower(model.ground, of_view(tensors, "ground"), source, sizes.get("ground"))
    }
    if model.aerial is None:
        fits["ground"].unused.extend(name for name in tensors if "aerial." in name)
    else:
        aerial = of_view(tensors, "aerial")
        fits["aerial"] = _fit_tower(model.aerial, aerial, source, sizes.get("aerial"))
    if model.log_scale is not None:
        fits["loss"] = _fit_scale(model.log_scale, tensors)
    return fits


def of_view(tensors: Mapping[str, Tensor], view: str) -> Mapping[str, Tensor]:
    """Return one tower's part of a file: the shared tower's, or all, where there are not two."""
    bare = {name.removeprefix("two_tower."): tensor for name, tensor in tensors.items()}
    for prefix in (f"{view}.", "ground."):
        part = {k.removeprefix(prefix): v for k, v in bare.items() if k.startswith(prefix)}
        if part:
            return part
    return tensors


def _fit_tower(
    tower: Tower, tensors: Mapping[str, Tensor], source: str, image_size: Size | None
) -> Fit:
    if isinstance(tower, TimmTower):
        if is_google([*tensors]):
            raise InputError(
                f"weights {source}: Google's file is for model.backbone=r50_vit_b16; a network of "
                "timm's takes timm's safetensors"
            )
        return fit(tower, tensors, source, _into_timm, partial(_flat_on_grid, tower, image_size))
    assert isinstance(tower, HybridTower), "there are two kinds of towers"
    if is_google([*tensors]):
        places_of = from_google
    else:
        places_of = from_timm if "cls_token" in tensors else unchanged
    return fit(tower, tensors, source, places_of, partial(_on_grid, tower))


def _fit_scale(log_scale: nn.Parameter, tensors: Mapping[str, Tensor]) -> Fit:
    learned = [t for name, t in tensors.items() if name.split(".")[-1] == LOG_SCALE]
    with torch.no_grad():
        for scale in learned:
            log_scale.copy_(scale)
    names = [LOG_SCALE]
    return Fit(loaded=names * len(learned), resized=[], fresh=[] if learned else names, unused=[])


def _on_grid(tower: HybridTower, place: str, tensor: Tensor) -> Tensor:
    if place != "encoder.positions" or tensor.ndim != 4:
        return tensor
    return resize_positions(tensor, tower.encoder.grid)


def _into_timm(name: str, tensor: Tensor) -> Places:
    """Names of timm's networks are ours below `network`."""
    return {name: tensor, f"network.{name}": tensor}


def _flat_on_grid(tower: TimmTower, image_size: Size | None, place: str, tensor: Tensor) -> Tensor:
    """Interpolate timm's positions [1, P + N, D]; those of P prefix tokens stay."""
    if place != "network.pos_embed":
        return tensor
    grid = tuple(tower.network.patch_embed.grid_size)
    prefix = tower.network.pos_embed.shape[1] - grid[0] * grid[1]
    patches = tensor.shape[1] - prefix
    rows, columns = image_size or (1, 1)
    height = round((patches * rows / columns) ** 0.5)
    if height * (patches // max(height, 1)) != patches:
        raise ValueError(f"{patches} positions are no grid of an image of {rows}:{columns}")
    source_grid = (height, patches // height)
    if source_grid == grid:
        return tensor
    positions = tensor[:, prefix:].reshape(1, *source_grid, -1)
    resized = resize_positions(positions, grid).flatten(1, 2)
    return torch.cat([tensor[:, :prefix].to(resized.dtype), resized], dim=1)


def resize_positions(positions_1HWD: Tensor, grid: tuple[int, int]) -> Tensor:
    """Interpolate positions linearly to another grid, corners onto corners, as Google's code does.

    Returns:
        float32 [1, *grid, D]; the input itself where the grid is the same.
    """
    if positions_1HWD.shape[1:3] == grid:
        return positions_1HWD
    planes_1DHW = positions_1HWD.float().permute(0, 3, 1, 2)
    resized_1DHW = F.interpolate(planes_1DHW, grid, mode="bilinear", align_corners=True)
    return resized_1DHW.permute(0, 2, 3, 1)
