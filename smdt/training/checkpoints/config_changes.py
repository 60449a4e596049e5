"""Changes of configuration that a run may resume with: pure comparisons.

One table has the effect of a change of every key of a configuration, another one of DeepSpeed's own
configuration. `docs/training.md` shows both to users.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Effect(Enum):
    """Effect of a changed key on a run that resumes."""

    NONE = "nothing"
    """Nothing that is learned or measured changes."""
    STEP = "it holds from the next step on"
    EVALUATION = "it holds from the next evaluation on, and the best score starts over"
    EPOCH = "it holds from the next epoch on"
    START = "it is read when a run starts, so it changes nothing now"
    FIXED = "impossible"


_NONE, _STEP, _EVALUATION = Effect.NONE, Effect.STEP, Effect.EVALUATION
_EPOCH, _START, _FIXED = Effect.EPOCH, Effect.START, Effect.FIXED

CONFIG_KEYS: Mapping[str, Effect] = {
    "stage": _FIXED,
    "run.name": _NONE,
    "run.out": _NONE,
    "run.seed": _FIXED,
    "run.timeout_seconds": _NONE,
    "run.max_lost_steps": _NONE,
    "data.shards": _NONE,  # the manifest is compared, wherever it lies
    "data.split": _FIXED,
    "data.order.policy": _EPOCH,
    "data.order.window": _EPOCH,
    "data.order.hard.neighbours": _EPOCH,
    "data.order.hard.group": _EPOCH,
    "data.order.hard.random_epochs": _EPOCH,
    "data.order.hard.map_epochs": _EPOCH,
    "data.order.hard.refresh": _EPOCH,
    "data.read_threads": _NONE,
    "data.decode_threads": _NONE,
    "data.read_ahead": _NONE,
    "data.max_quarantined": _NONE,
    "data.cache.folder": _NONE,
    "data.cache.gigabytes": _NONE,
    "batch.global": _STEP,
    "batch.chunks": _NONE,
    "aerial": _FIXED,
    "alignment.checkpoint": _NONE,  # the hash of its weights is compared, wherever they lie
    "alignment.sha256": _FIXED,
    "geometry.mapping": _FIXED,
    "geometry.panorama_size": _FIXED,
    "geometry.camera_height_m": _FIXED,
    "geometry.extent_m": _FIXED,
    "geometry.elevation_deg": _FIXED,
    "geometry.supersample": _FIXED,
    "geometry.tile_size": _FIXED,
    "augment.turn": _STEP,
    "augment.mirror": _STEP,
    "augment.fov_deg": _STEP,
    "augment.unknown_heading": _STEP,
    "semantics.keep": _STEP,
    "semantics.remove": _STEP,
    "init.weights": _START,
    "model.backbone": _FIXED,
    "model.shared": _FIXED,
    "model.pooling": _FIXED,
    "model.normalisation": _FIXED,
    "model.stem.kind": _FIXED,
    "model.stem.width": _FIXED,
    "model.stem.blocks": _FIXED,
    "model.stem.groups": _FIXED,
    "model.width": _FIXED,
    "model.layers": _FIXED,
    "model.heads": _FIXED,
    "model.hidden": _FIXED,
    "model.attention": _FIXED,
    "model.batch_norm": _FIXED,
    "model.settings": _FIXED,
    "model.dropout": _STEP,
    "model.drop_path": _STEP,
    "model.gradient_checkpointing": _NONE,
    "model.compile": _NONE,
    "model.folder": _START,  # the shapes of the weights are compared
    "model.architecture": _FIXED,
    "model.image_size": _FIXED,
    "model.arrangement": _FIXED,
    "model.g2_input": _FIXED,
    "model.generator_width": _FIXED,
    "model.discriminator_width": _FIXED,
    "model.feedback_loops": _FIXED,
    "model.alpha": _FIXED,
    "loss.name": _FIXED,
    "loss.gamma": _STEP,
    "loss.temperature": _START,  # it is learned from there on
    "loss.label_smoothing": _STEP,
    "loss.l1_segmentation": _STEP,
    "loss.l1_image": _STEP,
    "optimizer.learning_rate": _STEP,
    "optimizer.weight_decay": _STEP,
    "optimizer.betas": _STEP,
    "optimizer.epsilon": _STEP,
    "optimizer.gradient_clipping": _STEP,
    "optimizer.layer_decay": _FIXED,
    "schedule.length": _STEP,
    "schedule.warmup_steps": _STEP,
    "schedule.decay": _STEP,
    "schedule.linear_from": _STEP,
    "precision": _FIXED,
    "checkpoint.every": _STEP,
    "checkpoint.keep_last": _NONE,
    "evaluation.split": _EVALUATION,
    "evaluation.every": _STEP,
    "evaluation.batch": _NONE,
    "evaluation.max_missing": _NONE,
    "evaluation.protocol": _EVALUATION,
    "evaluation.fov_deg": _EVALUATION,
    "evaluation.unknown_heading": _EVALUATION,
    "telemetry.metrics_port": _NONE,
    "telemetry.metrics_address": _NONE,
    "telemetry.metrics_targets": _NONE,
    "telemetry.tls": _NONE,
    "telemetry.tensorboard": _NONE,
    "telemetry.device_tflops": _NONE,
}
"""Effect of every key of every stage. A key that holds a mapping of the user's own names is one
key."""

DEEPSPEED_KEYS: Mapping[str, Effect] = {
    # What the YAML says.
    "train_batch_size": _NONE,
    "train_micro_batch_size_per_gpu": _NONE,
    "gradient_accumulation_steps": _NONE,
    "gradient_clipping": _NONE,
    "managed_gradient_accumulation": _NONE,
    "bf16.enabled": _NONE,
    "fp16.enabled": _NONE,
    # What is said, measured or scheduled.
    "steps_per_print": _NONE,
    "wall_clock_breakdown": _NONE,
    "memory_breakdown": _NONE,
    "dump_state": _NONE,
    "comms_logger": _NONE,
    "flops_profiler": _NONE,
    "tensorboard": _NONE,
    "wandb": _NONE,
    "csv_monitor": _NONE,
    "aio": _NONE,
    "activation_checkpointing": _NONE,
    "checkpoint": _NONE,
    "zero_optimization.overlap_comm": _NONE,
    "zero_optimization.contiguous_gradients": _NONE,
    "zero_optimization.reduce_scatter": _NONE,
    "zero_optimization.reduce_bucket_size": _NONE,
    "zero_optimization.allgather_partitions": _NONE,
    "zero_optimization.allgather_bucket_size": _NONE,
    "zero_optimization.stage3_param_persistence_threshold": _NONE,
    "zero_optimization.stage3_prefetch_bucket_size": _NONE,
    "zero_optimization.stage3_max_live_parameters": _NONE,
    "zero_optimization.stage3_max_reuse_distance": _NONE,
    "zero_optimization.stage": _NONE,  # compared on its own: none is 0
    # How the states lie in a checkpoint, which DeepSpeed cannot convert.
    "zero_optimization": _FIXED,
}
"""Effect of DeepSpeed's keys; a section includes those of its keys that are not named; any other
key takes effect from the next step on."""


@dataclass(frozen=True)
class Difference:
    """A key whose configured value differs from the checkpoint's.

    Attributes:
        key: of the YAML, or of DeepSpeed's JSON.
        before: its value in the checkpoint.
        now: its value as asked.
        effect: of the change.
    """

    key: str
    before: object
    now: object
    effect: Effect

    def __str__(self) -> str:
        return f"{self.key} is {_shown(self.now)}, was {_shown(self.before)}"


def compare_configs(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Return what differs between two configurations, in the order of the table.

    Args:
        before: the checkpoint's, as its YAML holds it.
        now: the run's, in the same form.
    """
    return _differences(before, now, CONFIG_KEYS, _FIXED)


def compare_deepspeed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Return what differs between two of DeepSpeed's own configurations."""
    return _differences(before, now, DEEPSPEED_KEYS, _STEP)


def compare_environments(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one line on other code that resumes a run; empty if it is the same."""
    ours, theirs = (_versions(each) for each in (now, before))
    changed = [
        f"{name} {ours.get(name)} (was {theirs.get(name)})"
        for name in {**theirs, **ours}
        if ours.get(name) != theirs.get(name)
    ]
    return [f"other code resumes the run: {', '.join(changed)}"] if changed else []


def incompatibility_message(differences: list[Difference], checkpoint: str) -> str:
    """Return in one sentence why a run cannot resume with this configuration; empty if it can."""
    fixed = [difference for difference in differences if difference.effect is _FIXED]
    if not fixed:
        return ""
    said = " and ".join(map(str, fixed))
    return (
        f"{said} in the checkpoint {checkpoint}, which cannot resume with that: set it back, or "
        f"start a new run with another run.out (init.weights={checkpoint} gives it these weights)"
    )


def lines(differences: list[Difference]) -> list[str]:
    """Return a line on each change that takes effect: from when on it does."""
    silent = (_NONE, _FIXED)
    return [f"{each}: {each.effect.value}" for each in differences if each.effect not in silent]


def _differences(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    table: Mapping[str, Effect],
    otherwise: Effect,
) -> list[Difference]:
    ours, theirs = (dict(_leaves(each, table)) for each in (now, before))
    found = [
        Difference(key, theirs.get(key), ours.get(key), _effect(key, table, otherwise))
        for key in {**ours, **theirs}
        if _plain(theirs.get(key)) != _plain(ours.get(key))
    ]
    order = [*table]
    return sorted(
        found, key=lambda each: order.index(each.key) if each.key in table else len(order)
    )


def _leaves(
    content: Mapping[str, Any], table: Mapping[str, Effect], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield the keys of nested sections with their values; a key of the table is not a section."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        inside = any(other.startswith(f"{key}.") for other in table)
        if isinstance(value, Mapping) and (inside or key not in table):
            yield from _leaves(value, table, f"{key}.")
        else:
            yield key, value


def _effect(key: str, table: Mapping[str, Effect], otherwise: Effect) -> Effect:
    """Return the table's entry of a key or of a section that contains it."""
    while key:
        if key in table:
            return table[key]
        key = key.rpartition(".")[0]
    return otherwise


def _versions(environment: Mapping[str, Any]) -> dict[str, object]:
    names = ("python", "commit")
    return {
        **{name: environment.get(name) for name in names},
        **environment.get("packages", {}),
    }


def _plain(value: object) -> object:
    """Return a value as JSON holds it: 1.0 is 1, and a tuple is a list."""
    return json.loads(json.dumps(value, default=str))


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
