"""The Transformer encoder of a tower, with plain or cross-layer attention.

Cross-layer attention (EgoTR; docs/method.md): layer l takes its queries and values from
LN1(x_l) and its keys from LN2(x_{l-1}), the input of the layer before; layer 0 uses its own input.

B batch, H rows and W columns of the grid of patches, N tokens (the class token first), D width of a
token, A attention heads.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smdt.models.towers import recompute
from smdt.models.towers.dropout import Dropout
from smdt.models.towers.pooling import Pooling, make_pool

Attention = Literal["cross_layer", "self"]

NORM_EPSILON = 1e-6


def attend(q_BAND: Tensor, k_BAND: Tensor, v_BAND: Tensor) -> Tensor:
    """Scaled dot-product attention of [B, A, N, D / A] tensors."""
    if q_BAND.device.type == "cpu" and q_BAND.dtype == torch.bfloat16:
        # torch 2.14's fused kernel is 2 to 5 times slower here than the plain products
        scores_BANN = torch.matmul(q_BAND / math.sqrt(q_BAND.shape[-1]), k_BAND.transpose(-1, -2))
        return torch.matmul(scores_BANN.softmax(-1), v_BAND)
    return F.scaled_dot_product_attention(q_BAND, k_BAND, v_BAND)


class AttentionLayer(nn.Module):
    """Multi-head attention of tokens to keys that may come from elsewhere."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, key_source: Tensor) -> Tensor:
        """Queries and values from `tokens`, keys from `key_source`; all [B, N, D]."""
        q_BAND, k_BAND, v_BAND = (
            projection.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.query(tokens), self.key(key_source), self.value(tokens))
        )
        attended = attend(q_BAND, k_BAND, v_BAND)
        result: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return result


class EncoderLayer(nn.Module):
    """A pre-norm Transformer layer: attention, then a GELU perceptron, each around a shortcut."""

    def __init__(
        self, width: int, heads: int, hidden: int, dropout: float, attention: Attention
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPSILON) if attention == "cross_layer" else None
        self.attention = AttentionLayer(width, heads)
        self.norm3 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, previous: Tensor) -> Tensor:
        """Tokens [B, N, D] of this layer and the input of the layer before, to the next layer's."""
        tokens = self.norm1(x)
        key_source = tokens if self.norm2 is None else self.norm2(previous)
        x = x + self.attention(tokens, key_source)
        hidden = self.dropout(F.gelu(self.expand(self.norm3(x))))
        change: Tensor = self.dropout(self.contract(hidden))
        return x + change


class TransformerEncoder(nn.Module):
    """Patch features [B, H * W, D] to one vector, [B, D].

    Positions are kept as a grid, so that weights say which grid they are for.

    Attributes:
        grid: H and W.
    """

    def __init__(
        self,
        *,
        grid: tuple[int, int],
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        dropout: float,
        attention: Attention,
        pooling: Pooling = "class_token",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.grid = grid
        self._recompute = gradient_checkpointing
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.class_position = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.positions = nn.Parameter(torch.empty(1, *grid, width).normal_(std=0.02))
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, hidden, dropout, attention) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.pool = None if pooling == "class_token" else make_pool(pooling)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """The class token of every image after the final norm, or the pool of its patches."""
        class_token = (self.class_token + self.class_position).expand(len(patches), -1, -1)
        tokens = torch.cat([class_token, patches + self.positions.flatten(1, 2)], dim=1)
        x = self.dropout(tokens)
        previous = x
        for layer in self.layers:
            x, previous = recompute.call(layer, x, previous, recompute=self._recompute), x
        vector: Tensor = self.norm(x[:, 0]) if self.pool is None else self.pool(self.norm(x[:, 1:]))
        return vector
