"""A run's curves and where its time went, from what its steps measured (pure)."""

from collections.abc import Mapping, Sequence
from typing import Any

from smdt.report.chart import line_chart, thin


def charts(records: Sequence[Mapping[str, Any]], global_batch: int) -> dict[str, str]:
    """Return the curves of a run as SVG, by title.

    Args:
        records: lines of `metrics.jsonl`.
        global_batch: samples of a step.
    """
    steps = steps_of(records)

    def curve(group: str) -> dict[str, list[tuple[float, float]]]:
        names = steps[-1][group] if steps else {}
        return {name: [(r["step"], r[group][name]) for r in steps] for name in names}

    scored = [record for record in records if "scores" in record]
    kinds = scored[-1]["scores"] if scored else {}
    scores = {kind: [(r["step"], r["scores"][kind]) for r in scored] for kind in kinds}
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
        name: [(r["step"], r[f"{key}_seconds"]) for r in steps]
        for name, key in (
            ("whole step", "step"),
            ("in collectives", "collective_wait"),
            ("waiting for data", "data_wait"),
        )
    }
    # Of the mean time: the mean of rates would make much of a single quick step.
    rate = [(step, global_batch / mean) for step, mean in thin(seconds["whole step"])]
    losses = curve("losses")
    # Terms of several sizes would flatten each other in one chart.
    terms = {f"Loss: {name}": ({name: line}, "loss") for name, line in losses.items()}
    shown = {
        **(terms if len(terms) > 1 else {"Loss": (losses, "loss")}),
        **({"Recall on the held-out split": (recall, "%")} if recall else {}),
        **others,
        "Learning rate": (curve("learning_rate"), "rate"),
        "Gradient norm before clipping": (curve("gradient_norm"), "norm"),
        "Throughput": ({"rate": rate}, "samples/s"),
        "Time of a step": (seconds, "seconds"),
    }
    return {
        title: line_chart({name: thin(line) for name, line in lines.items()}, "step", unit)
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
    total = sum(record["step_seconds"] for record in steps)
    if not total:
        return {}
    wait = sum(record["data_wait_seconds"] for record in steps)
    collectives = sum(record["collective_wait_seconds"] for record in steps)
    parts = {
        "waiting for data": wait,
        "in collectives": collectives,
        "computing": total - wait - collectives,
    }
    saves = [line["seconds"] for line in history if line["event"] == "saved"]
    return {
        "steps": f"{len(steps)}",
        "in steps": f"{total:.1f} s, {global_batch * len(steps) / total:.1f} samples/s",
        **{name: f"{seconds:.1f} s, {seconds / total:.1%}" for name, seconds in parts.items()},
        "saving checkpoints, beside the steps": f"{sum(saves):.1f} s, {len(saves)} times",
    }


def steps_of(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the records of steps, without those of evaluations."""
    return [record for record in records if "losses" in record]
