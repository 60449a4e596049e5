import math

import numpy as np
import pytest
import torch

from smdt.models.towers.vit import TransformerEncoder, attend

SIZES = {"grid": (2, 3), "width": 12, "layers": 3, "heads": 2, "hidden": 20}
PATCHES = 6


def encoder(attention: str, dropout: float = 0.0, **options: object) -> TransformerEncoder:
    torch.manual_seed(0)
    model = TransformerEncoder(**SIZES, dropout=dropout, attention=attention, **options).double()
    for parameter in model.parameters():  # so that no norm or token is neutral
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def layer_norm(x, norm):
    weight, bias = (p.detach().numpy() for p in (norm.weight, norm.bias))
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(
        x.var(-1, keepdims=True) + 1e-6
    ) * weight + bias


def linear(x, layer):
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def oracle(model: TransformerEncoder, patches: np.ndarray, attention: str) -> np.ndarray:
    """All tokens of an image after the norm, one by one, head by head: docs/method.md."""
    class_token = (model.class_token + model.class_position).detach().numpy()[0]
    positions = model.positions.detach().numpy().reshape(PATCHES, -1)
    x = np.concatenate([class_token, patches + positions])
    inputs = [x]
    for index, layer in enumerate(model.layers):
        tokens = layer_norm(x, layer.norm1)
        keys_from = tokens
        if attention == "cross_layer":
            keys_from = layer_norm(inputs[max(index - 1, 0)], layer.norm2)
        query, key, value = (
            linear(tokens, layer.attention.query),
            linear(keys_from, layer.attention.key),
            linear(tokens, layer.attention.value),
        )
        mixed = np.zeros_like(x)
        size = SIZES["width"] // SIZES["heads"]
        for head in range(SIZES["heads"]):
            part = slice(head * size, (head + 1) * size)
            for token in range(len(x)):
                weights = np.exp(key[:, part] @ query[token, part] / math.sqrt(size))
                mixed[token, part] = weights / weights.sum() @ value[:, part]
        x = x + linear(mixed, layer.attention.out)
        x = x + linear(gelu(linear(layer_norm(x, layer.norm3), layer.expand)), layer.contract)
        inputs.append(x)
    return layer_norm(x, model.norm)


@pytest.mark.parametrize("attention", ["cross_layer", "self"])
@pytest.mark.parametrize("pooling", ["class_token", "mean"])
def test_equals_the_definition(attention, pooling):
    model = encoder(attention, pooling=pooling)
    patches = torch.randn(2, PATCHES, 12, dtype=torch.float64)
    result = model(patches).detach().numpy()
    for image in range(2):
        tokens = oracle(model, patches[image].numpy(), attention)
        expected = tokens[0] if pooling == "class_token" else tokens[1:].mean(axis=0)
        np.testing.assert_allclose(result[image], expected, rtol=1e-9)


def test_cross_layer_adds_one_norm_a_layer_and_nothing_else():
    plain, crossed = encoder("self"), encoder("cross_layer")
    added = set(dict(crossed.named_parameters())) - set(dict(plain.named_parameters()))
    assert added == {f"layers.{i}.norm2.{p}" for i in range(3) for p in ("weight", "bias")}


def test_first_layer_of_both_kinds_agrees_with_equal_norms():
    plain, crossed = encoder("self"), encoder("cross_layer")
    crossed.load_state_dict(plain.state_dict(), strict=False)
    crossed.layers[0].norm2.load_state_dict(plain.layers[0].norm1.state_dict())
    x = torch.randn(1, 6, 12, dtype=torch.float64)
    torch.testing.assert_close(plain.layers[0](x, x), crossed.layers[0](x, x))


def test_dropout_only_in_training_and_drawn_from_the_torch_seed():
    model = encoder("cross_layer", dropout=0.3)
    patches = torch.randn(2, PATCHES, 12, dtype=torch.float64)

    def embed(seed):
        torch.manual_seed(seed)
        return model(patches)

    assert torch.equal(embed(1), embed(1))
    assert not torch.equal(embed(1), embed(2))
    model.eval()
    assert torch.equal(embed(1), embed(2))


def test_attention_in_bf16_agrees_with_fp32():
    q, k, v = torch.randn(3, 2, 2, 33, 16)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    result = attend(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("attention", ["cross_layer", "self"])
def test_gradient_checkpointing_changes_no_bit(attention):
    patches = torch.randn(2, PATCHES, 12, dtype=torch.float64)
    gradients = []
    for recompute in (False, True):
        model = encoder(attention, dropout=0.3, gradient_checkpointing=recompute)
        torch.manual_seed(1)
        model(patches).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(map(torch.equal, *gradients))
