import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_jaccard_index

from smdt.evaluation.iou import class_iou, confusion, mean_iou

IDS = np.array([0, 1, 2, 3, 4, 5, 255], dtype=np.uint8)


def maps(seed, void=True, shape=(2, 9, 13)):
    generator = np.random.default_rng(seed)
    true = generator.choice(IDS if void else IDS[:6], shape)
    predicted = np.where(generator.random(shape) < 0.5, true, generator.choice(IDS[:6], shape))
    return true, np.where(predicted == 255, 0, predicted).astype(np.uint8)


@given(st.integers(0, 1000))
def test_the_confusion_matrix_is_that_of_plain_numpy(seed):
    true, predicted = maps(seed)
    expected = np.array(
        [[np.sum((true == t) & (predicted == p)) for p in range(6)] for t in range(6)]
    )
    found = confusion(torch.from_numpy(predicted), torch.from_numpy(true))
    assert np.array_equal(found.numpy(), expected)
    assert found.sum() == (true != 255).sum()


def test_matrices_of_parts_add_up():
    true, predicted = (torch.from_numpy(each) for each in maps(0))
    parts = confusion(predicted[:1], true[:1]) + confusion(predicted[1:], true[1:])
    assert torch.equal(parts, confusion(predicted, true))


def test_the_mean_is_the_jaccard_index_of_torchmetrics():
    true, predicted = (torch.from_numpy(each) for each in maps(1, void=False, shape=(4, 32, 32)))
    expected = multiclass_jaccard_index(predicted.long(), true.long(), num_classes=6)
    assert mean_iou(confusion(predicted, true)) == pytest.approx(float(expected), abs=1e-6)


def test_a_class_counts_where_it_is_true_or_predicted():
    true = torch.tensor([0, 0, 3, 255], dtype=torch.uint8)
    predicted = torch.tensor([0, 5, 3, 1], dtype=torch.uint8)
    found = confusion(predicted, true)
    nan = float("nan")
    assert class_iou(found).tolist() == pytest.approx([0.5, nan, nan, 1, nan, 0], nan_ok=True)
    assert mean_iou(found) == 0.5
    assert np.isnan(mean_iou(torch.zeros(6, 6, dtype=torch.int64)))
