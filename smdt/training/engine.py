"""DeepSpeed engines: how they are configured, made, stepped, saved and restored.

The only place that knows DeepSpeed. It is imported where it is used: that takes seconds, and a
command that only reads a configuration or evaluates needs nothing of it.
"""

import functools
import os
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.optim import AdamW

from data_shards.errors import InputError
from data_shards.packages import require_package
from smdt.training.finite import FiniteAdamW
from smdt.training.flat import flatten
from smdt.training.parameter_groups import parameter_groups
from smdt.training.place import find_place
from smdt.training.universal import give_every_rank_a_part

Precision = Literal["fp32", "bf16", "fp16"]

DEEPSPEED = "deepspeed>=0.19.8,<0.20"
"""What pip installs; this module knows the inside of these versions."""
GPU_BACKEND = "cpu:gloo,cuda:nccl"
"""How ranks on GPUs meet: NCCL alone, DeepSpeed's choice, refuses every tensor of the CPU."""


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
    """What each layer's rate is multiplied by for the layer below it, down to the image."""


class AdamConfig(OptimizerConfig):
    """Adam (Kingma and Ba), as GANs use it: no decay, a short first moment, no clipping."""

    learning_rate: float = Field(2e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.5, 0.999)
    epsilon: float = Field(1e-8, gt=0)
    gradient_clipping: float = Field(0.0, ge=0)


def require_deepspeed() -> None:
    """Check that DeepSpeed is installed, without importing it.

    Raises:
        InputError: it is not.
    """
    description = "DeepSpeed, which trains and starts ranks,"
    require_package("deepspeed", description, DEEPSPEED)


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

    find_place()
    # The shared-memory kernel serves inference only, and building it takes a compiler and minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed calls collectives by names that torch has deprecated.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    timeout = timedelta(seconds=timeout_seconds)
    accelerator = get_accelerator()
    # torch binds MPI's and SLURM's variables itself; ours are always set by now.
    deepspeed.init_distributed(
        dist_backend=GPU_BACKEND if accelerator.device_name() == "cuda" else None,
        auto_mpi_discovery=False,
        timeout=timeout,
        verbose=False,
    )
    dist.new_group = functools.partial(dist.new_group, timeout=timeout)
    device = torch.device(accelerator.device_name(int(os.environ["LOCAL_RANK"])))
    if device.type != "cpu":
        accelerator.set_device(device.index)
    return device


def zero_stage(settings: Mapping[str, Any]) -> int:
    """Return the stage of ZeRO that a DeepSpeed configuration asks for."""
    return int(settings.get("zero_optimization", {}).get("stage", 0))


def deepspeed_settings(
    user: Mapping[str, Any],
    *,
    global_batch: int,
    world_size: int,
    precision: Precision,
    gradient_clipping: float,
) -> dict[str, Any]:
    """Return DeepSpeed's configuration with every `"auto"` filled from the YAML (pure).

    What both files could say is said in the YAML: batch sizes, clipping and precision.

    Raises:
        InputError: the DeepSpeed file sets one of them to something else, or has no loss scaling
            for the precision.
    """
    if precision == "fp16" and zero_stage(user) == 0:
        raise InputError(
            "DeepSpeed configuration: without ZeRO DeepSpeed does not scale the loss of "
            "precision: fp16; set zero_optimization.stage to 1, 2 or 3, or precision to bf16"
        )
    share = global_batch // world_size
    for key in ("optimizer", "scheduler"):
        if key in user:
            raise InputError(
                f"DeepSpeed configuration: '{key}' is said in the YAML (`optimizer`, `schedule`) "
                "and would not be used; delete it there"
            )
    if "writer" in user.get("checkpoint", {}) or "datastates_ckpt" in user:
        raise InputError(
            "DeepSpeed configuration: 'checkpoint.writer' and 'datastates_ckpt' go on writing when "
            "a checkpoint counts as whole; remove them: hashes are made behind the training"
        )
    filled: dict[str, Any] = {
        "train_batch_size": global_batch,
        "train_micro_batch_size_per_gpu": share,
        # The stage cuts its share into chunks itself and steps once.
        "gradient_accumulation_steps": 1,
        "gradient_clipping": gradient_clipping,
        "managed_gradient_accumulation": False,
        "bf16": {**user.get("bf16", {}), "enabled": precision == "bf16"},
        "fp16": {**user.get("fp16", {}), "enabled": precision == "fp16"},
    }
    for key, ours in filled.items():
        theirs = user.get(key, "auto")
        enabled = theirs.get("enabled", "auto") if isinstance(theirs, Mapping) else theirs
        wanted = ours["enabled"] if isinstance(ours, dict) else ours
        if enabled not in ("auto", wanted):
            raise InputError(
                f"DeepSpeed configuration: '{key}' is {enabled} but the YAML makes it {wanted}; "
                'write "auto"'
            )
    return {**user, **filled}


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
        # DeepSpeed's own optimizers look for what is not finite; here it steps this one as it is.
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
        self._find_infinities_by_norm()
        if hasattr(self._engine.optimizer, "grad_partitions_flat_buffer"):
            # ZeRO 3 flattens a rank's gradients, which lie in one buffer, for the optimizer.
            self._engine.optimizer.flatten = flatten
        self._world_size = dist.get_world_size()
        self.learning_rate = 0.0

    def _find_infinities_by_norm(self) -> None:
        """Have DeepSpeed see by the gradients' norm alone that one of them is not finite.

        It looks into every gradient first, with a dozen kernels for each, and without ZeRO it waits
        for each: more than half of a step's kernels. The norm, which it then looks at, tells as
        much, and the same to all ranks.
        """
        optimizer = self._engine.optimizer
        if hasattr(optimizer, "overflow_checker"):  # without ZeRO
            optimizer.overflow_checker.check = lambda: False
        elif hasattr(optimizer, "check_overflow") and getattr(optimizer, "compute_grad_norm", True):
            optimizer.check_overflow = lambda **_: None

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
            give_every_rank_a_part(optimizer)
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
