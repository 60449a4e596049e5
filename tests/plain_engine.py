"""What a stage needs of an engine, without DeepSpeed."""

import torch


class PlainEngine:
    """A module, and an optimizer that steps it; without one gradients pile up in the module.

    Attributes:
        stepped: how often.
    """

    def __init__(
        self, module: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        self.module = module
        self.stepped = 0
        self._optimizer = optimizer

    def forward(self, *inputs):
        return self.module(*inputs)

    def backward(self, share):
        share.backward()

    def step(self, rate_factor):
        self.stepped += 1
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad()
