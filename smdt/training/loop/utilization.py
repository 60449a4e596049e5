"""Model FLOPs utilization (Chowdhery et al. 2022, appendix B).

Counted is what the method asks for: products and convolutions, forward and backward. What is
computed twice to save memory counts once, all else not at all.
"""

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from smdt.training.deepspeed.settings import Precision

PEAK_TFLOPS = {
    "A100": 312.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H200": 989.0,
    "B200": 2250.0,
    "L40S": 362.0,
}
"""TFLOP/s of dense bf16 or fp16 products, as NVIDIA's data sheets give them; the first name that is
part of the device's counts."""


def ideal_step_seconds(
    flops: Callable[[], float],
    device: torch.device,
    precision: Precision,
    device_tflops: float | None = None,
) -> float | None:
    """Return how long a device would take at its peak; None where the peak is unknown.

    Args:
        flops: counts what the device has to do.
        device: that does it.
        precision: its arithmetic.
        device_tflops: its peak, TFLOP/s, if it was said.
    """
    if device_tflops is None and device.type == "cuda":
        device_tflops = known_tflops(torch.cuda.get_device_name(device), precision)
    return None if device_tflops is None else flops() / (device_tflops * 1e12)


def known_tflops(name: str, precision: Precision) -> float | None:
    """Return the peak of a GPU by its name, TFLOP/s; None if unknown."""
    if precision == "fp32":  # depends on what torch does in TF32
        return None
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


@torch.no_grad()
def forward_flops(forward: Callable[[], object]) -> int:
    """Count the floating-point operations of products and convolutions in a call."""
    from torch.utils.flop_counter import FlopCounterMode  # imports triton: half a second

    # The counter knows attention as two products only.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward()
    total: int = counter.get_total_flops()
    return total
