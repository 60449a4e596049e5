"""Trying a network before it trains, without memory or computation as far as that goes."""

from collections.abc import Callable
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def output_shape(network: Network, call: Callable[[Network, torch.device], Tensor]) -> torch.Size:
    """Return the shape of what a network makes of blank images.

    A copy that has shapes and no values is tried first. What fails there, as some networks do that
    look at values, is tried as it is.

    Args:
        network: in training mode; without statistics that a call would change.
        call: the network, or its copy, of images on a device.

    Raises:
        Exception: whatever the network raises.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            return call(_without_values(network), torch.device("meta")).shape
        except Exception:  # networks of others raise whatever a size leads them to
            return call(network, next(network.parameters()).device).shape


def one_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _without_values(network: Network) -> Network:
    held = [*network.parameters(), *network.buffers()]
    return deepcopy(network, {id(each): _empty(each) for each in held})


def _empty(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
