"""What becomes of a change: every key has chosen, and each class is said as it is."""

from collections.abc import Iterator
from typing import get_args

import pytest
from pydantic import BaseModel

from smdt.stages.config import SCHEMAS
from smdt.training.checkpoints import config_changes
from smdt.training.checkpoints.config_changes import CONFIG_KEYS, Effect


def models_in(annotation: object) -> list[type[BaseModel]]:
    """All models that a field may hold, whatever unions and tags they stand in."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        inner = models_in(field.annotation)
        if not inner or key in CONFIG_KEYS:
            yield key
        else:
            for each in inner:
                yield from keys_of(each, f"{key}.")


def test_every_key_of_every_stage_has_chosen_what_a_change_does():
    keys = {key for schema in SCHEMAS.values() for key in keys_of(schema)}
    assert keys - CONFIG_KEYS.keys() == set(), "new keys: choose their effect"
    assert CONFIG_KEYS.keys() - keys == set(), "no schema has these"
    assert {"model.stem.kind", "loss.gamma", "loss.temperature", "batch.global"} <= keys


def nested(key: str, value: object) -> dict[str, object]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize("key", CONFIG_KEYS)
def test_each_change_is_refused_or_said_or_needs_no_word(key):
    before, now = nested(key, "old"), nested(key, "new")
    (found,) = config_changes.compare_configs(before, now)
    assert (found.key, found.before, found.now, found.effect) == (
        key, "old", "new", CONFIG_KEYS[key],
    )  # fmt: skip
    refused, lines = (
        config_changes.incompatibility_message([found], "step-00000008"),
        config_changes.lines([found]),
    )
    assert bool(refused) == (found.effect is Effect.FIXED)
    assert len(lines) == (found.effect not in (Effect.FIXED, Effect.NONE))
    for text in [refused] * bool(refused) + lines:
        assert f"{key} is new, was old" in text
        assert "\n" not in text
    assert config_changes.compare_configs(before, before) == []


def test_a_refusal_names_all_that_is_fixed_and_what_to_do():
    before = {"loss": {"name": "soft_margin", "gamma": 10.0}, "run": {"seed": 0}}
    now = {"loss": {"name": "info_nce", "temperature": 0.07}, "run": {"seed": 1}}
    refused = config_changes.incompatibility_message(
        config_changes.compare_configs(before, now), "runs/a/step-00000008"
    )
    assert "run.seed is 1, was 0 and loss.name is info_nce, was soft_margin" in refused
    assert "run.out" in refused
    assert "init.weights=runs/a/step-00000008" in refused


@pytest.mark.parametrize(
    ("before", "now", "effect"),
    [
        ({"zero_optimization": {"stage": 0}}, {}, Effect.NONE),
        ({"train_batch_size": "auto"}, {"train_batch_size": 8}, Effect.NONE),
        ({"zero_optimization": {"reduce_bucket_size": 1}}, {}, Effect.NONE),
        (
            {"zero_optimization": {"stage": 2}},
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
            Effect.FIXED,
        ),
        ({}, {"zero_optimization": {"round_robin_gradients": True}}, Effect.FIXED),
        ({}, {"communication_data_type": "fp32"}, Effect.STEP),
        ({"fp16": {"enabled": "auto"}}, {"fp16": {"loss_scale": 0}}, Effect.STEP),
    ],
)
def test_of_deepspeeds_configuration_what_decides_the_states_is_fixed(before, now, effect):
    effects = {each.effect for each in config_changes.compare_deepspeed(before, now)}
    assert effect in effects
    assert effects <= {effect, Effect.NONE}
    assert config_changes.compare_deepspeed(now, now) == []


def test_other_code_is_a_line():
    before = {"python": "3.12", "commit": "aaa", "packages": {"torch": "2.9"}, "hosts": ["a"]}
    now = {"python": "3.12", "commit": "bbb", "packages": {"torch": "2.10"}, "hosts": ["b"]}
    (line,) = config_changes.compare_environments(before, now)
    assert "commit bbb (was aaa)" in line
    assert "torch 2.10 (was 2.9)" in line
    assert "python" not in line
    assert config_changes.compare_environments(before, before | {"hosts": []}) == []
