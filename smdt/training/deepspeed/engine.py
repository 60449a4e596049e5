"""DeepSpeed engines: made, stepped, saved and restored.

DeepSpeed is imported where it is used: that takes seconds, and a command that only reads a
configuration or evaluates needs nothing of it.
"""

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import AdamW

from data_shards.base.errors import InputError
from smdt.training.deepspeed import patches
from smdt.training.deepspeed.optimizer import FiniteAdamW, OptimizerConfig
from smdt.training.deepspeed.parameter_groups import parameter_groups
from smdt.training.deepspeed.settings import require_deepspeed, zero_stage
from smdt.training.ranks.environment import rank_and_world_size

GPU_BACKEND = "cpu:gloo,cuda:nccl"
"""Backends of ranks on GPUs: DeepSpeed's default, NCCL alone, refuses every CPU tensor."""


def init_distributed(timeout_seconds: float) -> torch.device:
    """Join the process group that the launcher's environment describes.

    Every group that is made later gets the same timeout: ZeRO makes its own, which would otherwise
    keep torch's 30 minutes.

    Args:
        timeout_seconds: how long a collective may wait for a lost rank.

    Returns:
        The device of this rank.

    Raises:
        InputError: DeepSpeed is not installed.
    """
    require_deepspeed()
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    rank_and_world_size()
    patches.warn_of_other_versions()
    patches.skip_shared_memory_kernel()
    timeout = timedelta(seconds=timeout_seconds)
    accelerator = get_accelerator()
    # torch binds MPI's and SLURM's variables itself; ours are always set by now.
    deepspeed.init_distributed(
        dist_backend=GPU_BACKEND if accelerator.device_name() == "cuda" else None,
        auto_mpi_discovery=False,
        timeout=timeout,
        verbose=False,
    )
    patches.limit_new_groups(timeout)
    device = torch.device(accelerator.device_name(int(os.environ["LOCAL_RANK"])))
    if device.type != "cpu":
        accelerator.set_device(device.index)
    return device


class Engine:
    """One DeepSpeed engine: a module, its optimizer and its shards of both.

    Args:
        name: the engine's name in metrics and checkpoints.
        module: the network; DeepSpeed moves and casts it in place.
        optimizer: configuration of its AdamW.
        settings: complete DeepSpeed configuration, from `deepspeed_settings`.
        universal: whether what it will load is in the form for any number of ranks.

    Attributes:
        scales_loss: whether the loss scale is found by trial: skipped steps are part of that.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        optimizer: OptimizerConfig,
        settings: dict[str, Any],
        *,
        universal: bool = False,
    ) -> None:
        import deepspeed
        from deepspeed.accelerator import get_accelerator

        if settings["fp16"]["enabled"] and not get_accelerator().is_fp16_supported():
            raise InputError(
                "precision: fp16 needs a GPU, or a CPU with AVX512-FP16; set it to bf16 or fp32"
            )
        self._universal = universal
        if universal:
            loading = {**settings.get("checkpoint", {}), "load_universal": True}
            settings = {**settings, "checkpoint": loading}
        self.name = name
        self.scales_loss = bool(settings["fp16"]["enabled"])
        self._peak_learning_rate = optimizer.learning_rate
        groups = parameter_groups(module, optimizer.weight_decay, optimizer.layer_decay)
        self._rate_scales = [group.rate_scale for group in groups]
        # DeepSpeed's own optimizers check for infinities; here it steps this one directly.
        alone = zero_stage(settings) == 0 and not settings["bf16"]["enabled"]
        # bf16 without ZeRO takes one step at initialisation: at rate zero it changes nothing.
        adamw = (FiniteAdamW if alone else AdamW)(
            [{"params": g.parameters, "weight_decay": g.weight_decay} for g in groups],
            lr=0.0,
            betas=optimizer.betas,
            eps=optimizer.epsilon,
            fused=True,
        )
        if isinstance(adamw, FiniteAdamW):
            adamw.guard()
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=adamw, config=settings, dist_init_required=False
        )
        patches.find_infinities_by_norm(self._engine.optimizer)
        patches.flatten_without_copy(self._engine.optimizer)
        self._world_size = dist.get_world_size()
        self.learning_rate = 0.0

    @property
    def module(self) -> nn.Module:
        """The network, as DeepSpeed holds it."""
        module: nn.Module = self._engine.module
        return module

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the network's outputs, with a graph where gradients are enabled."""
        outputs: tuple[torch.Tensor, ...] = self._engine(*inputs)
        return outputs

    def backward(self, share: torch.Tensor) -> None:
        """Add the gradient of this rank's share of a sum over ranks.

        DeepSpeed averages gradients over ranks; a share is a summand, hence the factor.
        """
        self._engine.backward(share * self._world_size, scale_wrt_gas=False)

    def step(self, rate_factor: float) -> None:
        """Reduce the gradients over ranks, clip, and update the weights.

        Args:
            rate_factor: what the peak learning rate is multiplied by in this step.
        """
        self.learning_rate = self._peak_learning_rate * rate_factor
        optimizer = self._engine.optimizer
        for group, scale in zip(optimizer.param_groups, self._rate_scales, strict=True):
            group["lr"] = self.learning_rate * scale
        if hasattr(optimizer, "clear_lp_grads"):
            # bf16 on ZeRO 1: their sums in fp32 are what the step takes, and it needs the memory.
            optimizer.clear_lp_grads(set_to_none=True)
        self._engine.step()

    @property
    def gradient_norm(self) -> torch.Tensor | float:
        """Norm of the global gradient before clipping in the last step, NaN if unknown.

        A tensor is still on its device: to read it at once would wait for all of the step.
        """
        norm: torch.Tensor | float | None = self._engine.get_global_grad_norm()
        return float("nan") if norm is None else norm

    @property
    def skipped_steps(self) -> float | torch.Tensor:
        """Steps so far that changed nothing, because their gradient was not finite.

        A scalar on the device where only the device knows.
        """
        optimizer = self._engine.optimizer
        if isinstance(optimizer, FiniteAdamW):
            return optimizer.skipped_steps
        return float(self._engine.skipped_steps)

    @property
    def loss_scale(self) -> float:
        """Current loss scale; 1 without fp16."""
        return float(getattr(self._engine.optimizer, "cur_scale", 1.0))

    def save(self, folder: Path) -> None:
        """Write this rank's part of the engine's state below `folder`; every rank calls it."""
        self._engine.save_checkpoint(str(folder), tag=self.name, save_latest=False)

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote, at the same ZeRO stage; every rank calls it.

        At the same world size, unless `folder` is the universal form.
        """
        optimizer = self._engine.optimizer
        if self._universal:
            patches.add_empty_fragments(optimizer)
        ours = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        path, _ = self._engine.load_checkpoint(str(folder), tag=self.name)
        if path is None:
            raise InputError(f"checkpoint {folder}: DeepSpeed found no state of '{self.name}'")
        # The configuration decides, not what it was when the checkpoint was written; and ZeRO 3
        # gives all groups what the first one had.
        for group, values in zip(optimizer.param_groups, ours, strict=True):
            group.update(values)
        # ZeRO 3 also lets all of its sub-groups count steps in one tensor, each of them.
        for parameter, state in optimizer.state.items():
            state["step"] = state["step"].to(parameter.device, copy=True)

    def buffers(self) -> list[str]:
        """Names of the buffers that a checkpoint holds; a module makes the others itself."""
        held = self.module.state_dict().keys()
        return [name for name, _ in self.module.named_buffers() if name in held]

    @torch.no_grad()
    def restore_buffers(self, values: Mapping[str, torch.Tensor]) -> None:
        """Set buffers, by name."""
        for name, value in values.items():
            self.module.get_buffer(name).copy_(value)

    def full_weights(self) -> dict[str, torch.Tensor]:
        """Gather the fp32 weights; every rank calls it, all get the same tensors on the CPU.

        Returns:
            The parameters and buffers of the module's `state_dict`, by its names.
        """
        from deepspeed.utils import safe_get_full_fp32_param

        def full(parameter: nn.Parameter) -> torch.Tensor:
            found: torch.Tensor | None = safe_get_full_fp32_param(parameter)
            return parameter if found is None else found

        return held_weights(self.module, full)


def held_weights(
    module: nn.Module, full: Callable[[nn.Parameter], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Copy what a checkpoint holds of a module: what its `state_dict` does, and no other buffer.

    Args:
        module: parameters may be parts of what they are.
        full: gathers one.

    Returns:
        Tensors on the CPU by the names of the `state_dict`, fp32 where they are floating-point.
    """
    weights = dict(module.named_buffers(remove_duplicate=False))
    for name, parameter in module.named_parameters(remove_duplicate=False):
        weights[name] = full(parameter)
    held = {name: weights[name].detach() for name in module.state_dict()}
    # ZeRO hands out views of its flat buffers.
    return {
        name: weight.to("cpu", _full(weight.dtype), copy=True).contiguous()
        for name, weight in held.items()
    }


def _full(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.is_floating_point else dtype
