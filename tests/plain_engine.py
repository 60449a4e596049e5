"""What a stage needs of an engine, without DeepSpeed."""

from pathlib import Path

import torch

from smdt.training.deepspeed.engine import held_weights


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

    def full_weights(self) -> dict[str, torch.Tensor]:
        return held_weights(self.module, lambda parameter: parameter)

    def save(self, folder: Path) -> None:
        states = {"module": self.module.state_dict(), "optimizer": self._optimizer.state_dict()}
        torch.save(states, folder / f"{type(self.module).__name__}.pt")

    def load(self, folder: Path) -> None:
        states = torch.load(folder / f"{type(self.module).__name__}.pt")
        self.module.load_state_dict(states["module"])
        self._optimizer.load_state_dict(states["optimizer"])
