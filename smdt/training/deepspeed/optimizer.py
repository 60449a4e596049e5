"""The optimizer: its configuration, and AdamW that skips a step whose gradient is not finite.

Weights that a NaN has reached are lost, so an update with one is never made.
"""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class OptimizerConfig(BaseModel):
    """AdamW (Loshchilov and Hutter), as the paper's retrieval uses it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(1e-4, gt=0)
    """Rate at the end of the warm-up, for the configured global batch."""
    weight_decay: float = Field(0.03, ge=0)
    """Decoupled decay; vectors (biases, norms, tokens) are not decayed."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two moments."""
    epsilon: float = Field(1e-6, gt=0)
    """Added to the root of the second moment."""
    gradient_clipping: float = Field(1.0, ge=0)
    """Largest norm of the global gradient; 0 does not clip."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Learning-rate factor of each layer, relative to the layer above it."""


class AdamConfig(OptimizerConfig):
    """Adam (Kingma and Ba), as GANs use it: no decay, a short first moment, no clipping."""

    learning_rate: float = Field(2e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.5, 0.999)
    epsilon: float = Field(1e-8, gt=0)
    gradient_clipping: float = Field(0.0, ge=0)


class FiniteAdamW(torch.optim.AdamW):
    """AdamW in one pass that skips a step whose gradient is not finite.

    DeepSpeed's own optimizers do, but in fp32 without ZeRO it steps this one directly. The device
    decides, so that the program does not wait for it; by then all ranks have the same gradients.

    Attributes:
        skipped_steps: how many it skipped, a scalar on the device.
    """

    found_inf: Tensor
    """1 if the step is to be skipped: torch's fused optimizers read it."""

    skipped_steps: Tensor | float = 0.0

    def guard(self) -> None:
        """Check the gradients before every step from now on."""
        self.register_step_pre_hook(self._look)

    def _look(self, *_: object) -> None:
        parameters = [p for group in self.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.found_inf = (~torch.isfinite(torch.nn.utils.get_total_norm(gradients))).float()
        self.skipped_steps = self.found_inf + self.skipped_steps
