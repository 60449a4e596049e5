"""Weights as Google's R50+ViT files have them: names and shapes of its Flax code."""

from collections.abc import Iterator

import numpy as np

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def resnet_shapes(width: int, blocks: tuple[int, ...]) -> Shapes:
    """Kernels are HWIO; affine parameters of group norms keep three axes of length 1."""

    def norm(name: str, channels: int) -> Shapes:
        yield f"{name}/scale", (1, 1, 1, channels)
        yield f"{name}/bias", (1, 1, 1, channels)

    yield "conv_root/kernel", (7, 7, 3, width)
    yield from norm("gn_root", width)
    inputs = width
    for stage, count in enumerate(blocks, start=1):
        inner = width * 2 ** (stage - 1)
        for unit in range(1, count + 1):
            name = f"block{stage}/unit{unit}"
            yield f"{name}/conv1/kernel", (1, 1, inputs, inner)
            yield from norm(f"{name}/gn1", inner)
            yield f"{name}/conv2/kernel", (3, 3, inner, inner)
            yield from norm(f"{name}/gn2", inner)
            yield f"{name}/conv3/kernel", (1, 1, inner, 4 * inner)
            yield from norm(f"{name}/gn3", 4 * inner)
            if unit == 1:
                yield f"{name}/conv_proj/kernel", (1, 1, inputs, 4 * inner)
                yield from norm(f"{name}/gn_proj", 4 * inner)
            inputs = 4 * inner
    yield "features", (inputs,)


def google_shapes(
    *,
    stem_width: int = 64,
    blocks: tuple[int, ...] = (3, 4, 9),
    width: int = 768,
    layers: int = 12,
    heads: int = 12,
    hidden: int = 3072,
    grid: int = 14,
    classes: int = 21843,
) -> Shapes:
    """The whole file; the defaults are R50+ViT-B_16.npz, trained on ImageNet-21k at 224."""
    *resnet, (_, (channels,)) = resnet_shapes(stem_width, blocks)
    yield from resnet
    yield "embedding/kernel", (1, 1, channels, width)
    yield "embedding/bias", (width,)
    yield "cls", (1, 1, width)
    yield "Transformer/posembed_input/pos_embedding", (1, 1 + grid * grid, width)
    for layer in range(layers):
        name = f"Transformer/encoderblock_{layer}"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            yield f"{name}/{norm}/scale", (width,)
            yield f"{name}/{norm}/bias", (width,)
        attention = f"{name}/MultiHeadDotProductAttention_1"
        for projection in ("query", "key", "value"):
            yield f"{attention}/{projection}/kernel", (width, heads, width // heads)
            yield f"{attention}/{projection}/bias", (heads, width // heads)
        yield f"{attention}/out/kernel", (heads, width // heads, width)
        yield f"{attention}/out/bias", (width,)
        yield f"{name}/MlpBlock_3/Dense_0/kernel", (width, hidden)
        yield f"{name}/MlpBlock_3/Dense_0/bias", (hidden,)
        yield f"{name}/MlpBlock_3/Dense_1/kernel", (hidden, width)
        yield f"{name}/MlpBlock_3/Dense_1/bias", (width,)
    yield "Transformer/encoder_norm/scale", (width,)
    yield "Transformer/encoder_norm/bias", (width,)
    yield "pre_logits/kernel", (width, width)
    yield "pre_logits/bias", (width,)
    yield "head/kernel", (width, classes)
    yield "head/bias", (classes,)


def google_arrays(**sizes: int | tuple[int, ...]) -> dict[str, np.ndarray]:
    """Random values in every place."""
    random = np.random.default_rng(0)
    return {
        name: random.standard_normal(shape, np.float32) * np.float32(0.1)
        for name, shape in google_shapes(**sizes)
    }
