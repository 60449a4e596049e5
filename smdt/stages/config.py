"""A run's YAML: the configuration of its stage, read and validated.

`smdt/config_file.py` merges the file with `section.key=value`, pydantic checks the result.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, Tag, ValidationError
from pydantic.fields import FieldInfo

from data_shards.base.errors import InputError
from data_shards.base.text import to_utf8
from smdt.config_file import find, read, unreadable
from smdt.stages.alignment.config import AlignmentConfig
from smdt.stages.base_config import Config
from smdt.stages.retrieval.config import RetrievalConfig
from smdt.stages.segmentation.config import SegmentationConfig

SCHEMAS: Mapping[str, type[Config]] = {
    "retrieval": RetrievalConfig,
    "segmentation": SegmentationConfig,
    "alignment": AlignmentConfig,
}
"""Configuration class by `stage`."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a run's configuration.

    Args:
        path: the YAML file, or the name of a packaged one.
        overrides: `section.key=value` each, applied in order.

    Raises:
        InputError: the file is unreadable, or a key or value is not known; the sentence names it.
    """
    document = read(path, overrides)
    try:
        schema = _schema(document.content.get("stage"))
        return document.validated(schema)
    except ValidationError as error:
        raise InputError(f"configuration {path}: {_explain(schema, error)}") from error
    except ValueError as error:
        raise InputError(f"configuration {path}: {error}") from error


def check_ranks(config: Config, world_size: int, ranks_per_host: int = 1) -> None:
    """Check that the global batch can be cut into equal chunks, and that each rank has a port.

    Args:
        config: the run.
        world_size: ranks of the run.
        ranks_per_host: the most that one host has of them.

    Raises:
        InputError: it cannot, or not all have one; the sentence gives values that can be.
    """
    config.telemetry.check_ports(ranks_per_host)
    batch = config.batch
    parts = world_size * batch.chunks
    if batch.global_batch % parts:
        below = batch.global_batch // parts * parts
        fitting = " or ".join(str(size) for size in (below, below + parts) if size)
        raise InputError(
            f"batch.global is {batch.global_batch}, which {world_size} ranks x {batch.chunks} "
            f"chunks do not divide; set batch.global to {fitting}"
        )


def load_deepspeed(path: Path | None) -> dict[str, Any]:
    """Read a DeepSpeed configuration file or a packaged one; none is ZeRO 0 with its defaults.

    Raises:
        InputError: the file is unreadable or no JSON object.
    """
    if path is None:
        return {}
    try:
        content = json.loads(to_utf8(path, find(path).read_bytes()))
    except OSError as error:
        raise InputError(f"DeepSpeed configuration {path}: {unreadable(path, error)}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"DeepSpeed configuration {path}: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"DeepSpeed configuration {path}: not a JSON object")
    return content


def _schema(stage: object) -> type[Config]:
    """Return the schema of a stage.

    Raises:
        ValueError: there is no such stage.
    """
    if stage not in SCHEMAS:
        names = ", ".join(SCHEMAS)
        raise ValueError(f"stage: '{stage}' is not a stage; write one of {names}")
    return SCHEMAS[str(stage)]


def _explain(schema: type[Config], error: ValidationError) -> str:
    """Say the first thing that is wrong, with its key and, for an unknown one, the nearest."""
    first = error.errors()[0]
    path, known = _walk(schema, first["loc"])
    key = ".".join(str(part) for part in path)
    if first["type"] != "extra_forbidden":
        message = first["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    nearest = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.0)
    return f"unknown key '{key}'" + (f"; did you mean '{nearest[0]}'?" if nearest else "")


def _walk(
    schema: type[BaseModel], location: Sequence[str | int]
) -> tuple[list[str | int], list[str]]:
    """Follow pydantic's location of an error into `schema`.

    Where a section can be one of several models, the location holds the tag of the one that was
    meant, which is not a key of the YAML.

    Returns:
        The location without tags, and the known keys of the section that holds its last key.
    """
    *parents, last = location or ("",)
    path: list[str | int] = []
    section: type[BaseModel] | None = schema
    variants: Mapping[str, type[BaseModel]] = {}
    for part in parents:
        if str(part) in variants:
            section, variants = variants[str(part)], {}
            continue
        path.append(part)
        fields = _fields(section)
        variants = _models(fields[str(part)].annotation) if str(part) in fields else {}
        section = next(iter(variants.values()), None)
    return [*path, last], [*_fields(section)]


def _fields(section: type[BaseModel] | None) -> dict[str, FieldInfo]:
    """Return the keys of a section with what each may hold."""
    if section is None:
        return {}
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _models(annotation: object) -> dict[str, type[BaseModel]]:
    """Return the models that an annotation names, by what pydantic calls them in locations.

    That is the tag, or the first value of a model's `Literal`, by which it is chosen.
    """
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        literals = [get_args(f.annotation) for f in annotation.model_fields.values()]
        chosen_by = [args[0] for args in literals if args and isinstance(args[0], str)]
        return {str(next(iter(chosen_by), annotation.__name__)): annotation}
    found: dict[str, type[BaseModel]] = {}
    arguments = get_args(annotation)
    tags = [argument.tag for argument in arguments if isinstance(argument, Tag)]
    for argument in arguments:
        inside = _models(argument)
        found |= dict(zip(tags, inside.values(), strict=False)) if tags else inside
    return found
