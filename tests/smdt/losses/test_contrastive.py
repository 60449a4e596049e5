import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from smdt.losses.contrastive import (
    InfoNceConfig,
    LossConfig,
    NegativeMask,
    SoftMarginConfig,
    local_info_nce_loss,
    local_soft_margin_loss,
    negative_mask,
)

SCALE = torch.tensor([1 / 0.07], dtype=torch.float64)


def soft_margin(ground, aerial, rows, wrong):
    return local_soft_margin_loss(ground, aerial, rows, wrong, 10.0)


def info_nce(ground, aerial, rows, wrong):
    return local_info_nce_loss(ground, aerial, rows, wrong, SCALE.to(ground.dtype), 0.1)


LOSSES = pytest.mark.parametrize("loss", [soft_margin, info_nce])
Loss = Callable[[torch.Tensor, torch.Tensor, slice, NegativeMask], torch.Tensor]


def descriptors(batch: int, seed: int = 0, dim: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, batch, dim, generator=generator, dtype=torch.float64)
    ground, aerial = torch.nn.functional.normalize(pair, dim=-1)
    return ground, aerial


def distinct(batch: int, rows: slice) -> NegativeMask:
    """Negatives of a batch in which everything shows another place."""
    return negative_mask(torch.arange(batch).unsqueeze(1), rows)


def overlapping(batch: int, seed: int) -> torch.Tensor:
    """Places of pairs of which some show those of others too, as VIGOR's panoramas do."""
    generator = torch.Generator().manual_seed(seed)
    also = torch.randint(-1, batch, (batch, 3), generator=generator)
    return torch.cat([torch.arange(batch).unsqueeze(1), also], dim=1)


def negatives(shown: torch.Tensor) -> list[tuple[set[int], set[int]]]:
    """Of each pair: aerial images that do not show its panorama's place, and the other way round.

    One pair at a time, with sets.
    """
    places = [{place for place in row if place >= 0} for row in shown.tolist()]
    own = shown[:, 0].tolist()
    everyone = range(len(own))
    return [
        (
            {j for j in everyone if own[j] not in places[i]},
            {j for j in everyone if own[i] not in places[j]},
        )
        for i in everyone
    ]


def soft_margin_oracle(ground: np.ndarray, aerial: np.ndarray, shown, gamma: float) -> float:
    batch, total = len(ground), 0.0
    for direction, (query, gallery) in enumerate(((ground, aerial), (aerial, ground))):
        for i in range(batch):
            true = 2 - 2 * float(query[i] @ gallery[i])
            for j in negatives(shown)[i][direction]:
                x = gamma * (true - (2 - 2 * float(query[i] @ gallery[j])))
                total += max(x, 0) + math.log1p(math.exp(-abs(x)))
    return total / 2 / (batch * (batch - 1))


def info_nce_oracle(
    ground: np.ndarray, aerial: np.ndarray, shown, temperature: float, smoothing: float
) -> float:
    batch, total = len(ground), 0.0
    for direction, (query, gallery) in enumerate(((ground, aerial), (aerial, ground))):
        for i in range(batch):
            counted = sorted({i} | negatives(shown)[i][direction])
            logits = {j: float(query[i] @ gallery[j]) / temperature for j in counted}
            total_probability = sum(math.exp(logit) for logit in logits.values())
            for j in counted:
                target = smoothing / len(counted) + (1 - smoothing) * (j == i)
                total -= target * (logits[j] - math.log(total_probability))
    return total / 2 / batch


@given(batch=st.integers(2, 9), seed=st.integers(0, 99), gamma=st.sampled_from([1.0, 10.0]))
@settings(max_examples=25, deadline=None)
def test_soft_margin_equals_a_plain_loop(batch, seed, gamma):
    ground, aerial = descriptors(batch, seed)
    shown, rows = overlapping(batch, seed), slice(0, batch)
    loss = local_soft_margin_loss(ground, aerial, rows, negative_mask(shown, rows), gamma)
    expected = soft_margin_oracle(ground.numpy(), aerial.numpy(), shown, gamma)
    assert loss.item() == pytest.approx(expected)


@given(
    batch=st.integers(2, 9),
    seed=st.integers(0, 99),
    temperature=st.sampled_from([0.05, 1.0]),
    smoothing=st.sampled_from([0.0, 0.1]),
)
@settings(max_examples=25, deadline=None)
def test_info_nce_equals_a_plain_loop(batch, seed, temperature, smoothing):
    ground, aerial = descriptors(batch, seed)
    shown, rows = overlapping(batch, seed), slice(0, batch)
    scale = torch.tensor([1 / temperature])
    loss = local_info_nce_loss(ground, aerial, rows, negative_mask(shown, rows), scale, smoothing)
    expected = info_nce_oracle(ground.numpy(), aerial.numpy(), shown, temperature, smoothing)
    assert loss.item() == pytest.approx(expected)


def test_info_nce_is_torchs_cross_entropy_where_every_pair_is_another_place():
    ground, aerial = descriptors(8)
    logits = SCALE * ground @ aerial.T
    true = torch.arange(8)
    smoothed = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    expected = (smoothed(logits, true) + smoothed(logits.T, true)) / 2
    torch.testing.assert_close(
        info_nce(ground, aerial, slice(0, 8), distinct(8, slice(0, 8))), expected
    )


@LOSSES
@given(cuts=st.sets(st.integers(1, 11)), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_any_partition_of_the_rows_has_the_same_loss_and_gradient(loss: Loss, cuts, seed):
    ground, aerial = (x.requires_grad_() for x in descriptors(12, seed))
    shown = overlapping(12, seed)
    whole = loss(ground, aerial, slice(0, 12), negative_mask(shown, slice(0, 12)))
    expected = torch.autograd.grad(whole, (ground, aerial))
    parts = [slice(start, stop) for start, stop in pairwise([0, *sorted(cuts), 12])]
    shares = [loss(ground, aerial, part, negative_mask(shown, part)) for part in parts]
    assert sum(share.item() for share in shares) == pytest.approx(whole.item())
    gradients = [torch.autograd.grad(share, (ground, aerial)) for share in shares]
    for view, gradient in enumerate(expected):
        torch.testing.assert_close(sum(rank[view] for rank in gradients), gradient)


@LOSSES
def test_what_shows_the_same_place_has_no_part_in_the_loss(loss: Loss):
    ground, aerial = (x.requires_grad_() for x in descriptors(4))
    shown = torch.tensor([[0, 1], [1, -1], [2, -1], [3, -1]])
    rows = slice(0, 1)
    # Panorama 0 belongs to tile 1 too; tile 0 is wrong for panorama 1 all the same.
    wrong = negative_mask(shown, rows)
    assert wrong.aerial.tolist() == [[False, False, True, True]]
    assert wrong.ground.tolist() == [[False, True, True, True]]
    of_ground, of_aerial = torch.autograd.grad(loss(ground, aerial, rows, wrong), (ground, aerial))
    assert of_aerial[1].eq(0).all()
    assert of_ground[1].ne(0).any()
    twin = torch.tensor([[0], [0], [2], [3]])
    wrong = negative_mask(twin, rows)
    assert wrong.aerial.tolist() == wrong.ground.tolist() == [[False, False, True, True]]


@LOSSES
def test_the_gradient_is_right(loss: Loss):
    ground, aerial = (x.requires_grad_() for x in descriptors(4))
    rows = slice(1, 3)
    wrong = negative_mask(overlapping(4, 0), rows)
    assert torch.autograd.gradcheck(lambda g, a: loss(g, a, rows, wrong), (ground, aerial))
    scale = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda s: local_info_nce_loss(ground.detach(), aerial.detach(), rows, wrong, s, 0.1), scale
    )


def test_the_gradient_is_finite_for_extreme_descriptors():
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    swapped = (opposite.clone().requires_grad_(), opposite.flip(0).requires_grad_())
    rows = slice(0, 2)
    local_soft_margin_loss(*swapped, rows, distinct(2, rows), 1000.0).backward()
    assert all(bool(torch.isfinite(x.grad).all()) for x in swapped)
    loss = local_soft_margin_loss(*swapped, rows, distinct(2, rows), 1000.0)
    assert loss.item() == pytest.approx(4000.0)
    loss = local_info_nce_loss(*swapped, rows, distinct(2, rows), torch.tensor([1000.0]), 0.0)
    loss.backward()
    assert all(bool(torch.isfinite(x.grad).all()) for x in swapped)
    assert loss.item() == pytest.approx(2000.0)


def test_a_perfect_batch_has_no_loss_and_a_collapsed_one_that_of_chance():
    perfect, collapsed, rows = torch.eye(8), torch.ones(8, 1), slice(0, 8)
    wrong = distinct(8, rows)
    assert soft_margin(perfect, perfect, rows, wrong).item() < 1e-6
    assert soft_margin(collapsed, collapsed, rows, wrong).item() == pytest.approx(math.log(2))
    sharp = torch.tensor([100.0])
    assert local_info_nce_loss(perfect, perfect, rows, wrong, sharp, 0.0).item() < 1e-6
    assert info_nce(collapsed, collapsed, rows, wrong).item() == pytest.approx(math.log(8))


@LOSSES
def test_one_pair_has_no_negative(loss: Loss):
    with pytest.raises(ValueError, match="at least 2 pairs"):
        loss(torch.ones(1, 1), torch.ones(1, 1), slice(0, 1), distinct(1, slice(0, 1)))


@LOSSES
def test_memory_is_rows_times_batch(loss: Loss):
    batch, rows = 512, slice(0, 8)
    ground, aerial = (x.float().requires_grad_() for x in descriptors(batch))
    wrong = distinct(batch, rows)
    largest = 0

    def record(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda x: x):
        loss(ground, aerial, rows, wrong).backward()
    assert wrong.aerial.shape == wrong.ground.shape == (8, batch)
    assert largest <= 8 * batch


def test_config_knows_its_loss_by_name_and_refuses_what_belongs_to_another():
    adapter = TypeAdapter(LossConfig)
    assert adapter.validate_python({"gamma": 5}) == SoftMarginConfig(gamma=5)
    assert adapter.validate_python({"name": "info_nce"}) == InfoNceConfig(name="info_nce")
    for wrong, match in (
        ({"gama": 10}, "gama"),
        ({"gamma": 0}, "gamma"),
        ({"name": "info_nce", "gamma": 10}, "gamma"),
        ({"name": "soft_margin", "temperature": 0.1}, "temperature"),
        ({"name": "info_nce", "temperature": 0}, "temperature"),
        ({"name": "triplet"}, "soft_margin"),
    ):
        with pytest.raises(ValueError, match=match):
            adapter.validate_python(wrong)
