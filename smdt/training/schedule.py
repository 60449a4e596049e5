"""How long a run lasts and how fast it learns at each step: pure functions of the step."""

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

    def steps(self, steps_per_epoch: int) -> int:
        """Return the length in optimisation steps."""
        return self.count if self.unit == "step" else self.count * steps_per_epoch

    def ends_at(self, step: int, steps_per_epoch: int) -> bool:
        """Return whether a whole number of spans is done after `step` steps (0: never)."""
        length = self.steps(steps_per_epoch)
        return length > 0 and step > 0 and step % length == 0

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


class ScheduleConfig(BaseModel):
    """Length of the run and shape of its learning rate."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    length: Length = Span(200, "epoch")
    """How long to train, in steps or epochs."""
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
