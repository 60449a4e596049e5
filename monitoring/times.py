"""Durations of the alert rules, in one place."""

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class RuleDurations:
    """Durations of the rules, in seconds.

    Attributes:
        rate: over which rates are taken.
        stall: without a step, that makes a run stalled.
        silence: without an answer, that makes an endpoint down.
        lasting: that starving, straggling or skipping must last.
        recent: over which rare events are counted.
        unsaved: of training without a checkpoint.
        forgotten: after which a run whose endpoints are gone is not remembered.
    """

    rate: float = 5 * 60
    stall: float = 15 * 60
    silence: float = 2 * 60
    lasting: float = 10 * 60
    recent: float = 60 * 60
    unsaved: float = 2 * 60 * 60
    forgotten: float = 24 * 60 * 60

    def scaled(self, factor: float) -> "RuleDurations":
        """Return the same durations divided by a factor, for tests that cannot wait hours."""
        return replace(
            self, **{each.name: getattr(self, each.name) / factor for each in fields(self)}
        )


def duration(seconds: float) -> str:
    """Return a duration as Prometheus writes it, to the millisecond."""
    milliseconds = round(seconds * 1000)
    for size, unit in ((3_600_000, "h"), (60_000, "m"), (1000, "s")):
        if milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"
