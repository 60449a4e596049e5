import pytest
import torch

from smdt.training.flat import flatten


def pieces(buffer: torch.Tensor, *sizes: int) -> list[torch.Tensor]:
    return list(buffer.narrow(0, 3, sum(sizes)).split(sizes))


def test_neighbours_in_memory_are_one_without_a_copy():
    buffer = torch.randn(20)
    flat = flatten(pieces(buffer, 4, 1, 6))
    assert torch.equal(flat, buffer[3:14])
    flat.mul_(2)
    assert torch.equal(flat, buffer[3:14])
    whole = torch.randn(4, 5)
    assert flatten([whole]).data_ptr() == whole.data_ptr()
    assert torch.equal(flatten([whole]), whole.reshape(-1))


@pytest.mark.parametrize(
    "choose",
    [
        lambda a, b, c: [a, c],
        lambda a, b, c: [b, a],
        lambda a, b, c: [a, b.clone(), c],
        lambda a, b, c: [a, a],
        lambda a, b, c: [b[::2], c],
        lambda a, b, c: [b.view(2, 3).t(), c],
    ],
    ids=["gap", "order", "elsewhere", "twice", "strided", "transposed"],
)
def test_others_are_copied(choose):
    buffer = torch.randn(20)
    chosen = choose(*pieces(buffer, 4, 6, 2))
    flat = flatten(chosen)
    assert flat.tolist() == [value for each in chosen for value in each.reshape(-1).tolist()]
    before = buffer.clone()
    flat.zero_()
    assert torch.equal(buffer, before)
