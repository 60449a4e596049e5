import pytest
import torch
from torch import nn

from smdt.models.batch_norm import (
    BatchNorm,
    FixedBatchNorm,
    SampleNorm,
    keep_statistics,
    replace_batch_norms,
)

INPUTS = {
    nn.BatchNorm1d: [(4, 32), (4, 32, 5)],
    nn.BatchNorm2d: [(4, 32, 3, 5), (4, 32, 1, 1)],
    nn.BatchNorm3d: [(4, 32, 2, 3, 5)],
    nn.SyncBatchNorm: [(4, 32, 3, 5)],
}
CASES = [(kind, shape) for kind, shapes in INPUTS.items() for shape in shapes]


def network(kind: type[nn.Module], channels: int = 32, **changes: object) -> nn.Sequential:
    norm = kind(channels, **changes)
    with torch.no_grad():
        for tensor in norm.state_dict().values():
            if tensor.is_floating_point():
                tensor += torch.rand(channels, generator=torch.Generator().manual_seed(0))
    return nn.Sequential(norm)


def replaced(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    replace_batch_norms(module, lambda _, norm: kind(norm))
    return module


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_no_batch_norm_is_left_and_a_row_is_normalised_for_itself(kind, shape):
    module = replaced(network(kind), SampleNorm).train()
    assert not any(isinstance(part, BatchNorm) for part in module.modules())
    rows = torch.randn(shape)
    torch.testing.assert_close(module(rows)[1:2], module(rows[1:2]))
    assert module(rows).std() > 0.1


@pytest.mark.parametrize("channels", [7, 12, 32])
@pytest.mark.parametrize("places", [(), (1,), (1, 1)])
def test_one_place_is_not_normalised_to_zero(channels, places):
    """Seven channels make groups of one, which alone would always be at their mean."""
    kind = nn.BatchNorm2d if len(places) == 2 else nn.BatchNorm1d
    module = replaced(nn.Sequential(kind(channels)), SampleNorm)
    assert (module(torch.randn(3, channels, *places)) != 0).any()


@pytest.mark.parametrize(("kind", "shape"), CASES)
@pytest.mark.parametrize("affine", [True, False])
def test_a_fixed_norm_is_the_norm_in_evaluation_and_never_moves(kind, shape, affine):
    module = network(kind, affine=affine)
    rows = torch.randn(shape)
    expected = module.eval()(rows)
    names = set(module.state_dict())
    replaced(module, FixedBatchNorm).train()
    assert set(module.state_dict()) == names
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    torch.testing.assert_close(module(rows), expected)
    torch.testing.assert_close(module(rows[1:2]), expected[1:2])
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())


@pytest.mark.slow  # importing timm takes seconds
@pytest.mark.parametrize("kind", [SampleNorm, FixedBatchNorm])
def test_what_timm_s_norms_do_besides_stays(kind):
    from timm.layers import BatchNormAct2d

    norm = BatchNormAct2d(32, act_layer=nn.ReLU6, drop_layer=lambda: nn.Dropout(0.5))
    module = replaced(nn.Sequential(norm), kind)
    rows = 10 * torch.randn(2, 32, 4, 4)
    assert 0 <= module.eval()(rows).min() <= module(rows).max() <= 6
    evaluated = module(rows) == 0
    assert (module.train()(rows) == 0).sum() > 1.3 * evaluated.sum()


def test_a_norm_in_two_places_stays_one():
    norm = nn.BatchNorm2d(32)
    module = nn.ModuleDict({"a": nn.Sequential(norm), "b": nn.Sequential(norm)})
    replaced(module, SampleNorm)
    assert module["a"][0] is module["b"][0]


def test_weights_with_statistics_bring_a_batch_norm_back():
    first, second = (nn.BatchNorm2d(32) for _ in range(2))
    module = replaced(nn.Sequential(first, second), SampleNorm)
    weights = {
        f"1.{name}": value for name, value in network(nn.BatchNorm2d)[0].state_dict().items()
    }
    keep_statistics(module, weights)
    assert isinstance(module[0], SampleNorm)
    assert isinstance(module[1], FixedBatchNorm)
    module.load_state_dict(weights | {f"0.{n}": t for n, t in module[0].state_dict().items()})
    rows = torch.randn(2, 32, 3, 3)
    torch.testing.assert_close(module[1](rows), network(nn.BatchNorm2d).eval()(rows))
