import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smdt.losses.adversarial import local_adversarial_loss, local_l1_loss


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
    assert local_adversarial_loss(scores, true, 3).item() == pytest.approx(total)


@given(cuts=st.sets(st.integers(1, 7)), seed=st.integers(0, 20))
@settings(max_examples=25)
def test_any_partition_of_a_batch_adds_up_to_its_gan_losses(cuts, seed):
    scores = logits(8, seed)
    generator = torch.Generator().manual_seed(seed)
    made, target = torch.rand(2, 8, 3, 4, 6, generator=generator, dtype=torch.float64)
    known = torch.rand(8, 4, 6, generator=generator) < 0.5
    parts = [slice(start, stop) for start, stop in pairwise([0, *sorted(cuts), 8])]
    adversarial = sum(local_adversarial_loss([x[p] for x in scores], True, 8) for p in parts)
    torch.testing.assert_close(adversarial, local_adversarial_loss(scores, True, 8))
    distance = sum(local_l1_loss(made[p], target[p], 8, known[p]) for p in parts)
    torch.testing.assert_close(distance, local_l1_loss(made, target, 8, known))


def test_void_pixels_have_no_distance_and_no_gradient():
    made = torch.zeros(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    target = torch.arange(24, dtype=torch.float64).view(2, 3, 2, 2) + 1
    known = torch.tensor([[[True, False], [False, True]], [[False, False], [False, False]]])
    loss = local_l1_loss(made, target, 2, known)
    # Sample 0: pixels 0 and 3 of three channels, (1 + 5 + 9 + 4 + 8 + 12) / 6; sample 1 is void.
    assert loss.item() == pytest.approx(6.5 / 2)
    loss.backward()
    assert torch.equal(made.grad.abs().sum(1) > 0, known)
    plain = local_l1_loss(made, target, 2).item()
    assert plain == pytest.approx(target.mean().item())
