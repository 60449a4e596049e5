import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smdt.losses import LossConfig, adversarial_share, l1_share, soft_margin_rows


def descriptors(batch: int, seed: int = 0, dim: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, batch, dim, generator=generator, dtype=torch.float64)
    ground, aerial = torch.nn.functional.normalize(pair, dim=-1)
    return ground, aerial


def loop_oracle(ground: np.ndarray, aerial: np.ndarray, gamma: float) -> float:
    batch, total = len(ground), 0.0
    for query, gallery in ((ground, aerial), (aerial, ground)):
        for i in range(batch):
            true = 2 - 2 * float(query[i] @ gallery[i])
            for j in range(batch):
                if j != i:
                    x = gamma * (true - (2 - 2 * float(query[i] @ gallery[j])))
                    total += max(x, 0) + math.log1p(math.exp(-abs(x)))
    return total / 2 / (batch * (batch - 1))


@given(batch=st.integers(2, 9), seed=st.integers(0, 99), gamma=st.sampled_from([1.0, 10.0]))
@settings(max_examples=25, deadline=None)
def test_equals_a_plain_loop(batch, seed, gamma):
    ground, aerial = descriptors(batch, seed)
    loss = soft_margin_rows(ground, aerial, slice(0, batch), gamma)
    assert loss.item() == pytest.approx(loop_oracle(ground.numpy(), aerial.numpy(), gamma))


@given(cuts=st.sets(st.integers(1, 11)), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_any_partition_of_the_rows_has_the_same_loss_and_gradient(cuts, seed):
    ground, aerial = (x.requires_grad_() for x in descriptors(12, seed))
    whole = soft_margin_rows(ground, aerial, slice(0, 12), 10.0)
    expected = torch.autograd.grad(whole, (ground, aerial))
    edges = [0, *sorted(cuts), 12]
    parts = [
        soft_margin_rows(ground, aerial, slice(start, stop), 10.0)
        for start, stop in pairwise(edges)
    ]
    assert sum(part.item() for part in parts) == pytest.approx(whole.item())
    gradients = [torch.autograd.grad(part, (ground, aerial)) for part in parts]
    for view, gradient in enumerate(expected):
        torch.testing.assert_close(sum(rank[view] for rank in gradients), gradient)


def test_gradient_is_finite_and_right_for_extreme_descriptors():
    ground, aerial = (x.requires_grad_() for x in descriptors(4))
    assert torch.autograd.gradcheck(
        lambda g, a: soft_margin_rows(g, a, slice(1, 3), 10.0), (ground, aerial)
    )
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    wrong = (opposite.clone().requires_grad_(), opposite.flip(0).requires_grad_())
    loss = soft_margin_rows(*wrong, slice(0, 2), 1000.0)
    loss.backward()
    assert loss.item() == pytest.approx(4000.0)
    assert all(bool(torch.isfinite(x.grad).all()) for x in wrong)


def test_a_perfect_batch_has_no_loss_and_a_collapsed_one_log_2():
    perfect = torch.eye(8)
    assert soft_margin_rows(perfect, perfect, slice(0, 8), 10.0).item() < 1e-6
    collapsed = torch.ones(8, 1)
    loss = soft_margin_rows(collapsed, collapsed, slice(0, 8), 10.0)
    assert loss.item() == pytest.approx(math.log(2))


def test_one_pair_has_no_negative():
    with pytest.raises(ValueError, match="at least 2 pairs"):
        soft_margin_rows(torch.ones(1, 1), torch.ones(1, 1), slice(0, 1), 10.0)


def test_memory_is_rows_times_batch():
    batch, rows = 512, 8
    ground, aerial = (x.float().requires_grad_() for x in descriptors(batch))
    largest = 0

    def record(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda x: x):
        soft_margin_rows(ground, aerial, slice(0, rows), 10.0).backward()
    assert largest <= rows * batch


def test_config_refuses_unknown_and_senseless_values():
    with pytest.raises(ValueError, match="gama"):
        LossConfig.model_validate({"gama": 10})
    with pytest.raises(ValueError, match="gamma"):
        LossConfig(gamma=0)


def logits(batch: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((4, 6), (2, 3), (2, 3))
    return [torch.randn(batch, 1, *s, generator=generator, dtype=torch.float64) for s in sizes]


@pytest.mark.parametrize("true", [True, False])
def test_the_adversarial_loss_is_the_mean_cross_entropy_over_samples_scales_and_pixels(true):
    scores = logits(3)
    total = 0.0
    for scale in scores:
        for sample in scale:
            losses = [
                -math.log(p if true else 1 - p) for p in torch.sigmoid(sample).flatten().tolist()
            ]
            total += sum(losses) / len(losses) / len(scale) / len(scores)
    assert adversarial_share(scores, true, 3).item() == pytest.approx(total)


@given(cuts=st.sets(st.integers(1, 7)), seed=st.integers(0, 20))
@settings(max_examples=25)
def test_any_partition_of_a_batch_adds_up_to_its_gan_losses(cuts, seed):
    scores = logits(8, seed)
    generator = torch.Generator().manual_seed(seed)
    made, target = torch.rand(2, 8, 3, 4, 6, generator=generator, dtype=torch.float64)
    known = torch.rand(8, 4, 6, generator=generator) < 0.5
    parts = [slice(start, stop) for start, stop in pairwise([0, *sorted(cuts), 8])]
    adversarial = sum(adversarial_share([x[p] for x in scores], True, 8) for p in parts)
    torch.testing.assert_close(adversarial, adversarial_share(scores, True, 8))
    distance = sum(l1_share(made[p], target[p], 8, known[p]) for p in parts)
    torch.testing.assert_close(distance, l1_share(made, target, 8, known))


def test_void_pixels_have_no_distance_and_no_gradient():
    made = torch.zeros(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    target = torch.arange(24, dtype=torch.float64).view(2, 3, 2, 2) + 1
    known = torch.tensor([[[True, False], [False, True]], [[False, False], [False, False]]])
    loss = l1_share(made, target, 2, known)
    # Sample 0: pixels 0 and 3 of three channels, (1 + 5 + 9 + 4 + 8 + 12) / 6; sample 1 is void.
    assert loss.item() == pytest.approx(6.5 / 2)
    loss.backward()
    assert torch.equal(made.grad.abs().sum(1) > 0, known)
    plain = l1_share(made, target, 2).item()
    assert plain == pytest.approx(target.mean().item())
