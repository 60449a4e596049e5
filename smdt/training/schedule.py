"""Length and learning-rate schedule of a run: pure functions of its progress."""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

_DURATION = re.compile(r"(\d+) (step|epoch)s?")


@dataclass(frozen=True)
class Span:
    """A number of optimisation steps or of epochs, written `500 steps` or `15 epochs`."""

    count: int
    unit: Literal["step", "epoch"]

    def ends_at(self, step: int, epochs: int | None) -> bool:
        """Return whether a whole number of spans is done (a count of 0: never).

        Args:
            step: optimisation steps done.
            epochs: epochs done, None in the middle of one.
        """
        done = step if self.unit == "step" else epochs or 0
        return self.count > 0 and done > 0 and done % self.count == 0

    def __str__(self) -> str:
        return f"{self.count} {self.unit}{'' if self.count == 1 else 's'}"


def parse_span(text: object) -> Span:
    """Return the span that `text` says.

    Raises:
        ValueError: anything but `<number> steps` or `<number> epochs`.
    """
    if isinstance(text, Span):
        return text
    match = _DURATION.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(f"'{text}' is not a length; write for example '500 steps' or '15 epochs'")
    return Span(int(match[1]), "step" if match[2] == "step" else "epoch")


Length = Annotated[Span, BeforeValidator(parse_span), PlainSerializer(str, return_type=str)]


@dataclass(frozen=True)
class Plan:
    """The remaining steps of a run.

    Attributes:
        total: its optimisation steps, those that are done included.
        epochs: its epochs, the last of which it may leave before its end.
        shift: a step's place in the schedule of the learning rate, less its number: the schedule
            of epochs is that of a run which had the present batch from its beginning.
    """

    total: int
    epochs: int
    shift: int = 0

    @classmethod
    def of(cls, length: Span, step: int, epoch: int, left: int, steps_per_epoch: int) -> "Plan":
        """Plan the remaining steps of a run (pure).

        Args:
            length: of the whole run.
            step: optimisation steps done.
            epoch: that the run is in, from 0.
            left: steps that this epoch still has.
            steps_per_epoch: of every epoch after it.
        """
        if length.unit == "step":
            beyond = max(0, length.count - step - left)  # the epoch that the run is in
            return cls(length.count, epoch + 1 - (-beyond // steps_per_epoch))
        ahead = left + (length.count - epoch - 1) * steps_per_epoch
        return cls(step + ahead, length.count, length.count * steps_per_epoch - ahead - step)

    def rate_factor(self, step: int, config: "ScheduleConfig") -> float:
        """Return what the learning rate is multiplied by in step `step` (from 0), in [0, 1]."""
        return learning_rate_factor(step + self.shift, self.total + self.shift, config)


class ScheduleConfig(BaseModel):
    """Length of the run and shape of its learning rate."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    length: Length = Span(200, "epoch")
    """Length of the training, in steps or epochs."""
    warmup_steps: int = Field(500, ge=0)
    """Steps of linear growth from zero."""
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up; cosine and linear fall to zero at the end of the run."""
    linear_from: float = Field(0.5, ge=0, lt=1)
    """Part of the run that is over when linear decay begins."""


def learning_rate_factor(step: int, total_steps: int, config: ScheduleConfig) -> float:
    """Return what the learning rate is multiplied by in step `step` (from 0), in [0, 1].

    Linear warm-up, then a half cosine (Loshchilov and Hutter, SGDR, eq. 5, one cycle), or constant
    up to `linear_from` and then a straight line.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return 1.0
    if config.decay == "linear":
        start = config.linear_from * total_steps
        return min(1.0, max(0.0, (total_steps - step) / (total_steps - start)))
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
