"""Tensor names and layouts of other R50+ViT weights, converted to ours (pure).

A tensor can have several places here: the keys' norm of cross-layer attention starts as the norm of
queries and values, and what timm keeps as one matrix are three of ours.

H, W kernel, I inputs, O outputs, D width of a token, A attention heads, N patches of a square grid.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

NamedTensors = Mapping[str, Tensor]

WRAPPERS = ("opt/target/", "params/")
"""Folders that Google's training code put around the names in some files."""


def from_google(name: str, tensor: Tensor) -> NamedTensors:
    """Names and layouts of Google's `.npz` (Flax): kernels HWIO and [I, O], heads apart.

    Returns:
        Our names and tensors; none for the classifier.
    """
    return _translate(GOOGLE, _without(WRAPPERS, name), tensor)


def from_timm(name: str, tensor: Tensor) -> NamedTensors:
    """Names of timm's `vit_base_r50_s16_*`: queries, keys and values in one matrix.

    Returns:
        Our names and tensors; none for the classifier.
    """
    return _translate(TIMM, name, tensor)


def is_google(names: Sequence[str]) -> bool:
    """Whether a file with these names is Google's."""
    return any(_without(WRAPPERS, name) == "embedding/kernel" for name in names)


def square_grid(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Split positions [1, 1 + N, D] into the class token's [1, 1, D] and a grid's [1, n, n, D].

    Raises:
        ValueError: N is not a square.
    """
    patches = positions.shape[1] - 1
    side = round(patches**0.5)
    if side * side != patches:
        raise ValueError(f"{patches} positions do not form a square grid")
    return positions[:, :1], positions[:, 1:].reshape(1, side, side, -1)


def _without(prefixes: Sequence[str], name: str) -> str:
    for prefix in prefixes:
        name = name.removeprefix(prefix)
    return name


def _translate(
    table: Sequence[tuple[str, Callable[..., NamedTensors]]], name: str, tensor: Tensor
) -> NamedTensors:
    for pattern, places in table:
        if match := re.fullmatch(pattern, name):
            return places(tensor, *match.groups())
    return {}


def _affine(part: str) -> str:
    return {"scale": "weight"}.get(part, part)


def _oihw(kernel_HWIO: Tensor) -> Tensor:
    return kernel_HWIO.permute(3, 2, 0, 1)


def _positions(tensor: Tensor) -> NamedTensors:
    class_position, positions = square_grid(tensor)
    return {"encoder.class_position": class_position, "encoder.positions": positions}


def _first_norm(tensor: Tensor, layer: str, part: str) -> NamedTensors:
    names = ("norm1", "norm2")
    return {f"encoder.layers.{layer}.{norm}.{_affine(part)}": tensor for norm in names}


def _google_block(block: str, unit: str) -> str:
    return f"stem.stages.{int(block) - 1}.{int(unit) - 1}"


def _google_projection(tensor: Tensor, layer: str, name: str, part: str) -> NamedTensors:
    """Kernels of queries, keys and values are [D, A, D / A], that of the output [A, D / A, D]."""
    place = f"encoder.layers.{layer}.attention.{name}"
    if part == "bias":
        return {f"{place}.bias": tensor.flatten()}
    flat = tensor.flatten(0, 1) if name == "out" else tensor.flatten(1)
    return {f"{place}.weight": flat.T}


def _google_dense(tensor: Tensor, layer: str, dense: str, part: str) -> NamedTensors:
    place = f"encoder.layers.{layer}.{('expand', 'contract')[int(dense)]}"
    return {f"{place}.bias": tensor} if part == "bias" else {f"{place}.weight": tensor.T}


_BLOCK = r"block(\d+)/unit(\d+)"
_LAYER = r"Transformer/encoderblock_(\d+)"
GOOGLE: Sequence[tuple[str, Callable[..., NamedTensors]]] = (
    (r"conv_root/kernel", lambda t: {"stem.root.weight": _oihw(t)}),
    (r"gn_root/(scale|bias)", lambda t, p: {f"stem.root_norm.{_affine(p)}": t.flatten()}),
    (
        _BLOCK + r"/conv(\d)/kernel",
        lambda t, b, u, n: {f"{_google_block(b, u)}.conv{n}.weight": _oihw(t)},
    ),
    (
        _BLOCK + r"/gn(\d)/(scale|bias)",
        lambda t, b, u, n, p: {f"{_google_block(b, u)}.norm{n}.{_affine(p)}": t.flatten()},
    ),
    (
        _BLOCK + r"/conv_proj/kernel",
        lambda t, b, u: {f"{_google_block(b, u)}.shortcut.conv.weight": _oihw(t)},
    ),
    (
        _BLOCK + r"/gn_proj/(scale|bias)",
        lambda t, b, u, p: {f"{_google_block(b, u)}.shortcut.norm.{_affine(p)}": t.flatten()},
    ),
    (r"embedding/kernel", lambda t: {"project.weight": _oihw(t)}),
    (r"embedding/bias", lambda t: {"project.bias": t}),
    (r"cls", lambda t: {"encoder.class_token": t}),
    (r"Transformer/posembed_input/pos_embedding", _positions),
    (_LAYER + r"/LayerNorm_0/(scale|bias)", _first_norm),
    (
        _LAYER + r"/LayerNorm_2/(scale|bias)",
        lambda t, n, p: {f"encoder.layers.{n}.norm3.{_affine(p)}": t},
    ),
    (
        _LAYER + r"/MultiHeadDotProductAttention_1/(query|key|value|out)/(kernel|bias)",
        _google_projection,
    ),
    (_LAYER + r"/MlpBlock_3/Dense_([01])/(kernel|bias)", _google_dense),
    (r"Transformer/encoder_norm/(scale|bias)", lambda t, p: {f"encoder.norm.{_affine(p)}": t}),
)


def _timm_qkv(tensor: Tensor, layer: str, part: str) -> NamedTensors:
    names = ("query", "key", "value")
    return {
        f"encoder.layers.{layer}.attention.{name}.{part}": piece
        for name, piece in zip(names, torch.chunk(tensor, 3), strict=True)
    }


_STEM = r"patch_embed\.backbone\.stem"
_STAGE = r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)"
TIMM: Sequence[tuple[str, Callable[..., NamedTensors]]] = (
    (_STEM + r"\.conv\.weight", lambda t: {"stem.root.weight": t}),
    (_STEM + r"\.norm\.(weight|bias)", lambda t, p: {f"stem.root_norm.{p}": t}),
    (
        _STAGE + r"\.(conv\d|norm\d)\.(weight|bias)",
        lambda t, s, b, n, p: {f"stem.stages.{s}.{b}.{n}.{p}": t},
    ),
    (
        _STAGE + r"\.downsample\.(conv|norm)\.(weight|bias)",
        lambda t, s, b, n, p: {f"stem.stages.{s}.{b}.shortcut.{n}.{p}": t},
    ),
    (r"patch_embed\.proj\.(weight|bias)", lambda t, p: {f"project.{p}": t}),
    (r"cls_token", lambda t: {"encoder.class_token": t}),
    (r"pos_embed", _positions),
    (r"blocks\.(\d+)\.norm1\.(weight|bias)", _first_norm),
    (r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", _timm_qkv),
    (
        r"blocks\.(\d+)\.attn\.proj\.(weight|bias)",
        lambda t, n, p: {f"encoder.layers.{n}.attention.out.{p}": t},
    ),
    (
        r"blocks\.(\d+)\.norm2\.(weight|bias)",
        lambda t, n, p: {f"encoder.layers.{n}.norm3.{p}": t},
    ),
    (
        r"blocks\.(\d+)\.mlp\.fc1\.(weight|bias)",
        lambda t, n, p: {f"encoder.layers.{n}.expand.{p}": t},
    ),
    (
        r"blocks\.(\d+)\.mlp\.fc2\.(weight|bias)",
        lambda t, n, p: {f"encoder.layers.{n}.contract.{p}": t},
    ),
    (r"norm\.(weight|bias)", lambda t, p: {f"encoder.norm.{p}": t}),
)
