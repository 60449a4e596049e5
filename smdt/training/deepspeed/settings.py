"""DeepSpeed's configuration: what the user's file says, completed from the YAML."""

from collections.abc import Mapping
from typing import Any, Literal

from data_shards.base.errors import InputError
from data_shards.base.packages import require_package

Precision = Literal["fp32", "bf16", "fp16"]

DEEPSPEED = "deepspeed>=0.19.8,<0.20"
"""What pip installs; `patches.py` changes the inside of these versions."""


def require_deepspeed() -> None:
    """Check that DeepSpeed is installed, without importing it.

    Raises:
        InputError: it is not.
    """
    description = "DeepSpeed, which trains and starts ranks,"
    require_package("deepspeed", description, DEEPSPEED)


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
            "DeepSpeed configuration: 'checkpoint.writer' and 'datastates_ckpt' keep writing "
            "after `save_checkpoint` returns; remove them: the files are hashed right after"
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
