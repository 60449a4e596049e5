import math

import numpy as np
import pytest
import torch

from smdt.models.vit import TransformerEncoder, attend

SIZES = {"patches": 5, "width": 12, "layers": 3, "heads": 2, "hidden": 20}


def encoder(attention: str, dropout: float = 0.0, seed: int = 0) -> TransformerEncoder:
    torch.manual_seed(seed)
    model = TransformerEncoder(**SIZES, dropout=dropout, attention=attention).double()
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
    """One image, token by token and head by head, from the definition in DESIGN section 6."""
    x = np.concatenate([model.class_token.detach().numpy()[0], patches])
    x = x + model.positions.detach().numpy()[0]
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
    return layer_norm(x, model.norm)[0]


@pytest.mark.parametrize("attention", ["cross_layer", "self"])
def test_equals_the_definition(attention):
    model = encoder(attention)
    patches = torch.randn(2, 5, 12, dtype=torch.float64)
    result = model(patches).detach().numpy()
    for image in range(2):
        np.testing.assert_allclose(
            result[image], oracle(model, patches[image].numpy(), attention), rtol=1e-9
        )


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
    patches = torch.randn(2, 5, 12, dtype=torch.float64)

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
