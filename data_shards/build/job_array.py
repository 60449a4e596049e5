"""Task k of n: which shards of a build one process of a job array writes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from data_shards.base.errors import InputError

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class ArrayTask:
    """One of `count` processes that share a build; `index` counts from 0."""

    index: int
    count: int

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every `count`-th item from `index` on: the shares of all tasks are the whole, once."""
        return items[self.index :: self.count]

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


WHOLE = ArrayTask(0, 1)
"""The task of a build without a job array."""


def parse_task(text: str, environment: Mapping[str, str]) -> ArrayTask:
    """Read `--task`.

    Args:
        text: `K/N` with K from 0 to N - 1, or `auto`: what Slurm's or Kubernetes' variables say.
        environment: of this process.

    Raises:
        InputError: it is neither, or a variable is missing or no number.
    """
    if text != "auto":
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None:
            raise InputError(f"--task {text} is neither K/N, as 0/8, nor auto.")
        return _task(int(match[1]), int(match[2]), f"--task {text}")
    if "SLURM_ARRAY_TASK_ID" in environment:
        return _slurm_task(environment)
    if "JOB_COMPLETION_INDEX" in environment:
        index = _number(environment, "JOB_COMPLETION_INDEX")
        return _task(index, _number(environment, "JOB_COMPLETIONS"), "JOB_COMPLETION_INDEX")
    raise InputError(
        "--task auto finds neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX: "
        "start it in a Slurm job array or an Indexed Job of Kubernetes, or give --task K/N."
    )


def _slurm_task(environment: Mapping[str, str]) -> ArrayTask:
    task_id, first, last, count = (
        _number(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "MIN", "MAX", "COUNT")
    )
    step = 1 if count == 1 else max(1, (last - first) // (count - 1))
    index, beside = divmod(task_id - first, step)
    if beside or first + (count - 1) * step != last:
        raise InputError(
            f"The {count} tasks of this Slurm array, {first} to {last}, are not evenly numbered: "
            "submit it as --array=0-N, or give --task K/N."
        )
    return _task(index, count, "SLURM_ARRAY_TASK_ID")


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name)
    if value is None:
        also = ", which the Job's manifest has to set" if name == "JOB_COMPLETIONS" else ""
        raise InputError(
            f"--task auto needs the variable {name}{also}: set it, or give --task K/N."
        )
    if re.fullmatch(r"\d+", value) is None:
        raise InputError(f"The variable {name} is {value!r}, which is not a number.")
    return int(value)


def _task(index: int, count: int, where: str) -> ArrayTask:
    if index >= count:
        raise InputError(f"{where}: task {index} is out of range: {count} tasks, counted from 0.")
    return ArrayTask(index, count)
