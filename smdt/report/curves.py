"""A run's curves and where its time went, from what its steps measured (pure)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from smdt.report.chart import Points, downsample, line_chart, number


def charts(records: Sequence[Mapping[str, Any]], global_batch: int) -> dict[str, str]:
    """Return the curves of a run as SVG, by title.

    A curve begins where its values do; what is missing, null, NaN or infinite is left out. Of a
    step that was recorded twice the last record counts.

    Args:
        records: lines of `metrics.jsonl`.
        global_batch: samples of a step.
    """
    steps = steps_of(records)
    scores = curves(records, "scores")
    recall = {
        kind: [(step, 100 * value) for step, value in line]
        for kind, line in scores.items()
        if kind.startswith("R@")
    }
    others = {
        f"{kind} on the held-out split": ({kind: line}, kind)
        for kind, line in scores.items()
        if kind not in recall
    }
    seconds = {
        name: curve(steps, [record.get(f"{key}_seconds") for record in steps])
        for name, key in (
            ("whole step", "step"),
            ("in collectives", "collective_wait"),
            ("waiting for data", "data_wait"),
        )
    }
    # Of the mean time: the mean of rates would make much of a single quick step.
    means = downsample(seconds["whole step"])
    rate = [(step, global_batch / mean) for step, mean in means if mean > 0]
    losses = curves(steps, "losses")
    # Terms of several sizes would flatten each other in one chart.
    terms = {f"Loss: {name}": ({name: line}, "loss") for name, line in losses.items()}
    shown: dict[str, tuple[Mapping[str, Points], str]] = {
        **(terms if len(terms) > 1 else {"Loss": (losses, "loss")}),
        **({"Recall on the held-out split": (recall, "%")} if recall else {}),
        **others,
        "Learning rate": (curves(steps, "learning_rate"), "rate"),
        "Gradient norm before clipping": (curves(steps, "gradient_norm"), "norm"),
        "Throughput": ({"rate": rate}, "samples/s"),
        "Time of a step": (seconds, "seconds"),
    }
    return {
        title: line_chart({name: downsample(line) for name, line in lines.items()}, "step", unit)
        for title, (lines, unit) in shown.items()
    }


def times(
    records: Sequence[Mapping[str, Any]], history: Sequence[Mapping[str, Any]], global_batch: int
) -> dict[str, str]:
    """Return where the time of rank 0 went, as text by name.

    Args:
        records: lines of `metrics.jsonl`.
        history: lines of `history.jsonl`.
        global_batch: samples of a step.
    """
    steps = steps_of(records)

    def seconds(lines: Iterable[Mapping[str, Any]], name: str) -> list[float]:
        return [value for line in lines if (value := number(line.get(name))) is not None]

    total = sum(seconds(steps, "step_seconds"))
    if total <= 0:
        return {}
    wait = sum(seconds(steps, "data_wait_seconds"))
    collectives = sum(seconds(steps, "collective_wait_seconds"))
    parts = {
        "waiting for data": wait,
        "in collectives": collectives,
        "computing": total - wait - collectives,
    }
    saves = seconds([line for line in history if line.get("event") == "saved"], "seconds")
    return {
        "steps": f"{len(steps)}",
        "in steps": f"{total:.1f} s, {global_batch * len(steps) / total:.1f} samples/s",
        **{name: f"{part:.1f} s, {part / total:.1%}" for name, part in parts.items()},
        "saving checkpoints, between steps": f"{sum(saves):.1f} s, {len(saves)} times",
    }


def steps_of(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the records of steps, without those of evaluations."""
    return [record for record in records if isinstance(record.get("losses"), Mapping)]


def curves(records: Sequence[Mapping[str, Any]], group: str) -> dict[str, Points]:
    """Return a curve for each name that a group of values has in any record."""
    groups = [record.get(group) for record in records]
    names = dict.fromkeys(name for each in groups if isinstance(each, Mapping) for name in each)

    def values(name: str) -> list[object]:
        return [each.get(name) if isinstance(each, Mapping) else None for each in groups]

    return {name: curve(records, values(name)) for name in names}


def curve(records: Sequence[Mapping[str, Any]], values: Iterable[object]) -> Points:
    """Return the known values of records over their steps, in the order of the steps."""
    points: dict[float, float] = {}
    for record, each in zip(records, values, strict=True):
        step, value = number(record.get("step")), number(each)
        if step is not None and value is not None:
            points[step] = value
    return sorted(points.items())
