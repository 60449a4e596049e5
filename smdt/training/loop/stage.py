"""The interface between trainer and stages."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from data_shards.base.errors import InputError
from smdt.data.loader import Batch
from smdt.data.shard_cache import CacheConfig
from smdt.data.split import Split
from smdt.training.deepspeed.engine import Engine


class BatchConfig(BaseModel):
    """The global batch of an optimisation step and how each rank works through its share."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    global_batch: int = Field(32, gt=1, alias="global")
    """Samples of one optimisation step, over all ranks."""
    chunks: int = Field(1, gt=0)
    """Equal parts into which a rank cuts its share to save memory; the step stays the same."""


@dataclass(frozen=True)
class StepContext:
    """Step number and rank of a step."""

    step: int
    seed: int
    rank: int
    world_size: int
    chunks: int
    device: torch.device
    rate_factor: float = 0.0
    """What the engines' peak learning rates are multiplied by in this step."""


@dataclass(frozen=True)
class EvaluationData:
    """Inputs of an evaluation.

    Attributes:
        shards: folder of the data set.
        split: its split.
        batch: samples that a rank works on at once.
        max_missing: how many unreadable samples may be left out.
        cache: where the shards of a store are kept.
        panogan_compat: whether scores of images are the published ones (`ImageQuality`).
    """

    shards: str
    split: str
    batch: int
    max_missing: int
    cache: CacheConfig
    panogan_compat: bool = False


@dataclass(frozen=True)
class Evaluation:
    """Scores of an evaluation.

    Attributes:
        protocol: what was compared with what, a label of the metrics.
        scores: the figures, by name, higher is better for the first one.
        details: further content of the report, as JSON values.
    """

    protocol: str
    scores: Mapping[str, float]
    details: Mapping[str, object]


class Stage(ABC):
    """One stage: its modules, its optimisation step, its evaluation."""

    name: ClassVar[str]
    views: tuple[str, ...]
    """Views that a batch must hold, in the data plane's names."""

    @abstractmethod
    def modules(self) -> Mapping[str, nn.Module]:
        """Return the modules, by the name of the DeepSpeed engine that holds each."""

    @abstractmethod
    def step(
        self, engines: Mapping[str, Engine], batch: Batch, context: StepContext
    ) -> Mapping[str, torch.Tensor]:
        """Make one optimisation step from this rank's share of a global batch.

        Returns:
            This rank's share of each loss term, float scalars; summed over ranks they are the
            terms of the global batch.
        """

    @abstractmethod
    def flops_per_sample(self) -> float:
        """Count the floating-point operations that one sample of an optimisation step asks for.

        Before the modules are under DeepSpeed; a backward counts as two forwards.
        """

    @abstractmethod
    def evaluate(self, context: StepContext, data: EvaluationData) -> Evaluation:
        """Evaluate the current modules; every rank calls it and gets the same answer.

        Without a process group the only rank is this process.
        """

    def require(self, split: Split) -> None:
        """Check that a split, and whatever else the stage needs, is what it is to work on.

        Raises:
            InputError: it is not.
        """
        del split

    def require_shards(self, data: EvaluationData) -> None:
        """Check that shards hold what evaluations, the first of which may be hours away, need.

        Raises:
            InputError: they do not.
            DataError: more samples are in missing or truncated tars than may be missing.
        """
        split = Split.open(data.shards, data.split, data.cache)
        split.require_views(self.views)
        split.require_tars(data.max_missing, "max_missing")
        self.require(split)

    def neighbours(self, context: StepContext, split: Split, count: int) -> torch.Tensor:
        """Find the nearest samples with the current modules; every rank calls it.

        Args:
            context: this rank.
            split: to search in.
            count: K.

        Returns:
            Of this rank's `evaluation_slice` n of the split: int32 [n, K] sample ids of other
            places, most alike first, -1 where there are fewer.

        Raises:
            UserError: this stage embeds nothing.
        """
        del context, split, count
        raise InputError(
            f"data.order.hard.refresh needs embeddings, and the stage {self.name!r} makes none: "
            "set it to null"
        )


def equal_slices(count: int, parts: int) -> list[slice]:
    """Return `parts` equal slices of `count` rows, which `parts` must divide (pure)."""
    assert count % parts == 0, "the configuration is checked before the run starts"
    length = count // parts
    return [slice(part * length, (part + 1) * length) for part in range(parts)]
