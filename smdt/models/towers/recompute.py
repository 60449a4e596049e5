"""Gradient checkpointing: a layer's activations are made again in the backward, not kept."""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def call(layer: nn.Module, *inputs: torch.Tensor, recompute: bool) -> Any:  # noqa: ANN401  (what the layer returns)
    """Call a layer; with `recompute` only its inputs are kept, and dropout draws the same again."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)
