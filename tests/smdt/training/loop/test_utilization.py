import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smdt.training.loop.utilization import forward_flops, ideal_step_seconds, known_tflops

CPU = torch.device("cpu")


def test_products_and_convolutions_are_counted_by_the_book():
    linear = nn.Linear(30, 50)
    assert forward_flops(lambda: linear(torch.ones(7, 30))) == 2 * 7 * 30 * 50
    conv = nn.Conv2d(3, 8, kernel_size=5, stride=2, padding=2)
    # 16 x 16 outputs of 8 channels, each a sum over 3 x 5 x 5 products
    assert forward_flops(lambda: conv(torch.ones(2, 3, 32, 32))) == 2 * 2 * 8 * 16 * 16 * 75


def test_attention_is_two_products():
    q, k, v = torch.ones(3, 1, 4, 10, 16)
    count = forward_flops(lambda: F.scaled_dot_product_attention(q, k, v))
    assert count == 2 * (2 * 4 * 10 * 10 * 16)


def test_the_ideal_step_takes_the_flops_at_the_peak():
    assert ideal_step_seconds(lambda: 5e12, CPU, "bf16", device_tflops=2.0) == 2.5


def test_without_a_peak_nothing_is_counted():
    def count():
        raise AssertionError

    assert ideal_step_seconds(count, CPU, "bf16") is None


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.0),
        ("NVIDIA H100 PCIe", "fp16", 756.0),
        ("NVIDIA H100 80GB HBM3", "fp32", None),
        ("A Toaster", "bf16", None),
    ],
)
def test_gpus_are_known_by_name(name, precision, peak):
    assert known_tflops(name, precision) == peak
