"""Weights to start from: read from a file, given the names of a module, fitted and accounted for.

Google's `.npz` of R50+ViT-B/16 (Dosovitskiy et al. 2021), safetensors of timm's, safetensors of
ours. Nothing that is read is unpickled.

H rows and W columns of a grid of patches, N patches, P tokens before them, D width of a token.
"""

import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from data_shards.base.errors import InputError
from smdt.models.towers.hybrid import HybridTower
from smdt.models.towers.positions import SQUARE, resize_positions, tower_positions
from smdt.models.towers.timm_tower import TimmTower
from smdt.models.towers.tower import Size, Tower
from smdt.models.towers.two_tower import TwoTower
from smdt.models.towers.weight_names import NamedTensors, from_google, from_timm, is_google
from smdt.models.trial import one_line


class InitConfig(BaseModel):
    """Initial weights of a run; a run that resumes from its own checkpoint ignores them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: str | None = None
    """A run or a checkpoint of the same stage; for retrieval also Google's `.npz` of R50+ViT-B/16
    or a safetensors file, timm's or ours. By default weights are random."""


LOG_SCALE = "log_scale"
"""What `TwoTower` calls the parameter that its loss learns."""


@dataclass(frozen=True)
class LoadReport:
    """Load report of one module.

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
    except (
        *(OSError, EOFError, ValueError, TypeError, NotImplementedError),
        *(SafetensorError, zipfile.BadZipFile, zlib.error),
    ) as error:
        raise InputError(f"weights {path}: {one_line(error)}") from error
    raise InputError(f"weights {path}: neither a folder nor an .npz or .safetensors file")


def keep_name(name: str, tensor: Tensor) -> NamedTensors:
    """Say that a file's names are the module's."""
    return {name: tensor}


def load_tensors(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    source: str,
    places_of: Callable[[str, Tensor], NamedTensors] = keep_name,
    on_grid: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor,
) -> LoadReport:
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
    return LoadReport(loaded, resized, [name for name in state if name not in filled], unused)


def load_towers(
    model: TwoTower,
    tensors: Mapping[str, Tensor],
    source: str,
    image_sizes: Mapping[str, Size] | None = None,
) -> dict[str, LoadReport]:
    """Copy tensors into both towers: a file of one network's into each of them.

    Args:
        model: the towers.
        tensors: of two towers of ours, or of one network of ours, timm's or Google's.
        source: what the file is called in errors.
        image_sizes: of the images that towers of ours were trained on, by view. A file of one
            network has the positions of a square image.

    Returns:
        Load reports of the towers, by view, and of a learned temperature, as `loss`.

    Raises:
        InputError: they do not fit.
    """
    fits = {"ground": _fit_tower(model.ground, tensors, "ground", source, image_sizes)}
    if model.aerial is None:
        fits["ground"].unused.extend(name for name in tensors if "aerial." in name)
    else:
        fits["aerial"] = _fit_tower(model.aerial, tensors, "aerial", source, image_sizes)
    if model.log_scale is not None:
        fits["loss"] = _fit_scale(model.log_scale, tensors)
    return fits


def of_view(tensors: Mapping[str, Tensor], view: str) -> tuple[str | None, Mapping[str, Tensor]]:
    """Return one tower's part of a file, and the view that this part was built for.

    That is the shared tower, built for ground images, where there are not two; None and all of the
    file where it is of one network.
    """
    bare = {name.removeprefix("two_tower."): tensor for name, tensor in tensors.items()}
    for source in (view, "ground"):
        prefix = f"{source}."
        part = {k.removeprefix(prefix): v for k, v in bare.items() if k.startswith(prefix)}
        if part:
            return source, part
    return None, tensors


def _fit_tower(
    tower: Tower,
    tensors: Mapping[str, Tensor],
    view: str,
    source: str,
    image_sizes: Mapping[str, Size] | None,
) -> LoadReport:
    built_for, part = of_view(tensors, view)
    if isinstance(tower, TimmTower):
        if is_google([*part]):
            raise InputError(
                f"weights {source}: Google's file is for model.backbone=r50_vit_b16; a timm "
                "network takes timm's safetensors"
            )
        if built_for is None:
            origin: Size | None = SQUARE
        else:
            origin = None if image_sizes is None else image_sizes[built_for]
        return load_tensors(tower, part, source, _into_timm, tower_positions(tower, origin))
    assert isinstance(tower, HybridTower), "there are two kinds of towers"
    if is_google([*part]):
        places_of = from_google
    else:
        places_of = from_timm if "cls_token" in part else keep_name
    return load_tensors(tower, part, source, places_of, partial(_on_grid, tower))


def _fit_scale(log_scale: nn.Parameter, tensors: Mapping[str, Tensor]) -> LoadReport:
    learned = [t for name, t in tensors.items() if name.split(".")[-1] == LOG_SCALE]
    with torch.no_grad():
        for scale in learned:
            log_scale.copy_(scale)
    names = [LOG_SCALE]
    return LoadReport(
        loaded=names * len(learned), resized=[], fresh=[] if learned else names, unused=[]
    )


def _on_grid(tower: HybridTower, place: str, tensor: Tensor) -> Tensor:
    if place != "encoder.positions" or tensor.ndim != 4:
        return tensor
    return resize_positions(tensor, tower.encoder.grid)


def _into_timm(name: str, tensor: Tensor) -> NamedTensors:
    """Return a timm tensor under its own name and below our `network`."""
    return {name: tensor, f"network.{name}": tensor}
