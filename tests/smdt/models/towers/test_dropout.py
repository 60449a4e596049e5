import pytest
import torch

from smdt.models.towers.dropout import Dropout


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_units_are_dropped_as_often_as_asked_and_the_mean_stays(probability):
    torch.manual_seed(0)
    dropped = Dropout(probability)(torch.ones(1000, 1000))
    assert (dropped == 0).float().mean().item() == pytest.approx(probability, abs=0.002)
    assert dropped.mean().item() == pytest.approx(1, abs=0.004)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - probability)], rel=1e-4)


def test_units_that_share_a_draw_are_independent():
    torch.manual_seed(0)
    dropped = Dropout(0.5)(torch.ones(250_000, 4))
    correlation = torch.corrcoef(dropped.T)
    assert (correlation - torch.eye(4)).abs().max() < 0.01
    repeats = (dropped[:-1] == dropped[1:]).float().mean()
    assert repeats.item() == pytest.approx(0.5, abs=0.004)


def test_gradients_flow_through_the_same_units():
    x = torch.randn(7, 5, requires_grad=True)
    dropped = Dropout(0.4)(x)
    dropped.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(dropped == 0, 0.0, dropped.detach() / x))


def test_the_torch_seed_decides_and_evaluation_drops_nothing():
    layer, x = Dropout(0.3), torch.randn(11, 13)

    def drop(seed):
        torch.manual_seed(seed)
        return layer(x)

    assert torch.equal(drop(1), drop(1))
    assert not torch.equal(drop(1), drop(2))
    layer.eval()
    assert torch.equal(layer(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert Dropout(0.3)(x.bfloat16()).dtype == torch.bfloat16
