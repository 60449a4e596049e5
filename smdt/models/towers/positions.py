"""Position embeddings: resampled to another grid of patches, or refused.

H rows and W columns of a grid of patches, N patches, P tokens before them, D width of a token.
"""

import functools
import re
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smdt.models.towers.timm_tower import TimmTower, make_network
from smdt.models.towers.tower import Size

SQUARE: Size = (1, 1)
"""Shape of an image whose size is unknown and whose sides are equal."""

RELATIVE = re.compile(r"rel(ative)?_pos|attention_bias")
"""Names of tables that a network learns of the distance of two places in a window."""


def tower_positions(tower: TimmTower, origin: Size | None) -> Callable[[str, Tensor], Tensor]:
    """Return what takes a file's tensors to the grid of a tower's images.

    Args:
        tower: of a network of timm's.
        origin: rows and columns of the images that the file's network was trained on, or `SQUARE`;
            None where that is unknown.

    Returns:
        Of a tensor's name in the tower and the tensor: the tensor, or its positions on the tower's
        grid. It raises ValueError where they can't be interpolated.
    """

    @functools.cache
    def network_of_file() -> nn.Module:
        assert origin is not None
        network: nn.Module = make_network(tower.config, (origin,))
        return network

    def on_grid(place: str, tensor: Tensor) -> Tensor:
        if place == "network.pos_embed" and tensor.ndim == 3:
            return _flat_on_grid(tower, origin, tensor)
        if RELATIVE.search(place):
            _require_same_window(tower, origin, place, network_of_file)
        return tensor

    return on_grid


def _flat_on_grid(tower: TimmTower, origin: Size | None, tensor: Tensor) -> Tensor:
    """Interpolate timm's positions [1, P + N, D]; those of P prefix tokens stay."""
    grid_size = getattr(tower.network.patch_embed, "grid_size", None)
    rows, columns = tower.sizes[0]
    if grid_size is None:
        if origin == (rows, columns) or (origin == SQUARE and rows == columns):
            return tensor
        raise ValueError("the grid of its positions is unknown; start from images of equal size")
    if origin is None:
        raise ValueError("the file does not say which images its positions are of: name the run")
    grid = (int(grid_size[0]), int(grid_size[1]))
    prefix = tower.network.pos_embed.shape[1] - grid[0] * grid[1]
    patches = tensor.shape[1] - prefix
    height = round((patches * origin[0] / origin[1]) ** 0.5)
    if height * (patches // max(height, 1)) != patches:
        raise ValueError(
            f"{patches} positions do not form a grid of an image of {origin[0]}:{origin[1]}"
        )
    source_grid = (height, patches // height)
    if source_grid == grid:
        return tensor
    positions = tensor[:, prefix:].reshape(1, *source_grid, -1)
    resized = resize_positions(positions, grid).flatten(1, 2)
    return torch.cat([tensor[:, :prefix].to(resized.dtype), resized], dim=1)


def _require_same_window(
    tower: TimmTower, origin: Size | None, place: str, network_of_file: Callable[[], nn.Module]
) -> None:
    """Check that a table of relative positions was learned on a grid or in a window of our sides.

    Raises:
        ValueError: it was not. Its shape does not tell: 8x32 and 16x16 have as many distances.
    """
    ours = tower.sizes[0]
    if origin == ours:
        return
    path = place.removeprefix("network.").split(".")[:-1]
    window = _window(tower.network, path)
    if origin is None:
        raise ValueError("the file does not say which images its positions are of: name the run")
    if origin == SQUARE:
        rows, columns = ours if window is None else window
        same = rows == columns
    else:
        built = network_of_file()
        theirs, own = (_indices(each, path) for each in (built, tower.network))
        same = _window(built, path) == window and all(map(torch.equal, theirs, own))
    if not same:
        where = "square images" if origin == SQUARE else f"images of {origin[0]}x{origin[1]}"
        raise ValueError(
            f"its relative positions are those of {where} and can't be interpolated to "
            f"{ours[0]}x{ours[1]}"
        )


def _window(network: nn.Module, path: Sequence[str]) -> Size | None:
    """Return the sides of the window that a module works in, None where it does not say."""
    found = None
    for length in range(len(path) + 1):
        window = getattr(network.get_submodule(".".join(path[:length])), "window_size", None)
        if isinstance(window, tuple | list) and len(window) == 2:
            found = (int(window[0]), int(window[1]))
    return found


def _indices(network: nn.Module, path: Sequence[str]) -> list[Tensor]:
    """Return what says which entry of a module's table is for which two places."""
    buffers = network.get_submodule(".".join(path)).buffers(recurse=False)
    return [buffer for buffer in buffers if not buffer.is_floating_point()]


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
