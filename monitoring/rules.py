"""Recording rules and alerts (pure).

Ranks are told apart by `run`, `stage`, `rank` and `host`; `instance` is left out, since a rank that
starts again may have another port.
"""

from dataclasses import dataclass

from monitoring.times import RuleDurations, duration

RANK = "run, stage, rank, host"
RUN = "run, stage"
TRAINING = 'job="smdt", stage!~"shards|launcher"'
RUNBOOK = "docs/runbook.md"

STARVING = 0.1
"""Share of a step that a rank may wait for its batch."""
LAG = 0.15
"""Share of a step that the others may wait longer than a rank."""
SKIPPED = 0.05
"""Share of the steps that loss scaling may skip; it always skips a few when it begins."""
QUARANTINED = 0.001
"""Share of the samples that may be damaged."""
RESTARTS = 2
"""Restarts of a run that may come close together."""


@dataclass(frozen=True)
class Recording:
    """A figure that Prometheus computes all the time."""

    record: str
    expr: str


@dataclass(frozen=True)
class AlertRule:
    """An alert: a condition, how long it must hold, and the message.

    Attributes:
        name: of the alert; the runbook has a section of that name.
        expr: what is wrong where it has a value.
        hold: seconds that it must last.
        severity: `critical` needs a person now, `warning` today.
        summary: one line, a template of Prometheus.
    """

    name: str
    expr: str
    hold: float
    severity: str
    summary: str


def recordings(times: RuleDurations) -> list[Recording]:
    """Return the figures that alerts and dashboards share."""
    window = duration(times.rate)

    def rate(metric: str) -> str:
        return f"sum by ({RANK}) (rate({metric}[{window}]))"

    steps = rate("smdt_steps_total")
    seconds = f"({rate('smdt_step_seconds_sum')} > 0)"
    waits = "smdt:collective_wait:ratio"
    return [
        Recording("smdt:samples:rate", f"sum by ({RUN}) (rate(smdt_samples_total[{window}]))"),
        Recording("smdt:step:seconds", f"{rate('smdt_step_seconds_sum')}\n/ ({steps} > 0)"),
        Recording("smdt:data_wait:ratio", f"{rate('smdt_data_wait_seconds_total')}\n/ {seconds}"),
        Recording(waits, f"{rate('smdt_collective_wait_seconds_total')}\n/ {seconds}"),
        Recording("smdt:own_work:seconds", f"smdt:step:seconds * (1 - {waits})"),
        Recording(
            "smdt:straggler_lag:ratio",
            f"(sum by ({RUN}) ({waits}) - on ({RUN}) group_right () {waits})\n"
            f"/ on ({RUN}) group_left () (count by ({RUN}) ({waits}) - 1 > 0)\n"
            f"- {waits}",
        ),
    ]


def alerts(times: RuleDurations) -> list[AlertRule]:
    """Return the alert rules."""
    recent, forgotten = duration(times.recent), duration(times.forgotten)
    nonfinite, restarts = "smdt_nonfinite_steps_total", "smdt_launcher_restarts_total"

    def increase(metric: str) -> str:
        return f"increase({metric}[{recent}])"

    def share(part: str, whole: str, also: str = "") -> str:
        grouped = f"sum by ({RUN}{also}) ({increase(part)})"
        matching = f"on ({RUN}) group_left () " if also else ""
        return f"{grouped}\n/ {matching}(sum by ({RUN}) ({increase(whole)}) > 0)"

    return [
        AlertRule(
            "SmdtRunStalled",
            f"time() - max by ({RUN})"
            f" (last_over_time(smdt_last_step_timestamp_seconds[{forgotten}]))"
            f" > {times.stall:g}\n"
            f"and on ({RUN}) up{{{TRAINING}}}",
            times.silence / 2,
            "critical",
            "{{ $labels.run }} has made no step for {{ humanizeDuration $value }}",
        ),
        AlertRule(
            "SmdtLossNotFinite",
            # Not an increase: a run that never had a finite loss is read once.
            f"max by ({RUN}) (\n"
            f"  last_over_time({nonfinite}[{recent}]) > 0\n"
            f"  unless last_over_time({nonfinite}[{recent}])"
            f" == last_over_time({nonfinite}[{forgotten}] offset {recent})\n"
            ")",
            0,
            "critical",
            "{{ $labels.run }}: the loss or gradient of a step was NaN or infinite",
        ),
        AlertRule(
            "SmdtInputStarving",
            f"max by ({RUN}) (smdt:data_wait:ratio) > {STARVING:g}",
            times.lasting,
            "warning",
            "{{ $labels.run }}: a rank waits {{ humanizePercentage $value }} of its time for data",
        ),
        AlertRule(
            "SmdtStragglingRank",
            f"smdt:straggler_lag:ratio > {LAG:g}",
            times.lasting,
            "warning",
            "{{ $labels.run }}: the others wait {{ humanizePercentage $value }} of a step for "
            "rank {{ $labels.rank }} on {{ $labels.host }}",
        ),
        AlertRule(
            "SmdtSkippedSteps",
            share("smdt_skipped_steps_total", "smdt_steps_total", ", engine") + f" > {SKIPPED:g}",
            times.lasting,
            "warning",
            "{{ $labels.run }}: {{ $labels.engine }} skips {{ humanizePercentage $value }} of its "
            "steps",
        ),
        AlertRule(
            "SmdtQuarantineRate",
            share("smdt_quarantined_samples_total", "smdt_samples_total") + f" > {QUARANTINED:g}",
            times.silence,
            "warning",
            "{{ $labels.run }}: {{ humanizePercentage $value }} of the samples are damaged",
        ),
        AlertRule(
            "SmdtStaleCheckpoint",
            f"time() - max by ({RUN}) (smdt_checkpoint_last_success_timestamp_seconds)"
            f" > {times.unsaved:g}",
            times.silence,
            "warning",
            "{{ $labels.run }} would lose {{ humanizeDuration $value }} of training",
        ),
        AlertRule(
            "SmdtEndpointDown",
            'up{job="smdt"} == 0',
            times.silence,
            "warning",
            "{{ $labels.run }}: rank {{ $labels.rank }} on {{ $labels.host }} does not answer",
        ),
        AlertRule(
            "SmdtRunRestarting",
            # Counted exactly: an increase is extrapolated, which makes two restarts more than two.
            f"sum by ({RUN}) (changes({restarts}[{recent}]) - resets({restarts}[{recent}]))"
            f" > {RESTARTS}",
            0,
            "warning",
            '{{ $labels.run }} has been started again {{ printf "%.0f" $value }} times',
        ),
    ]


def as_yaml(times: RuleDurations, runbook: str = RUNBOOK) -> dict[str, object]:
    """Return the content of a rule file of Prometheus.

    Args:
        times: how long things last.
        runbook: page that the alerts' links lead into.
    """

    def rule(each: Recording | AlertRule) -> dict[str, object]:
        if isinstance(each, Recording):
            return {"record": each.record, "expr": each.expr}
        annotations = {"summary": each.summary, "runbook_url": f"{runbook}#{each.name.lower()}"}
        hold = {"for": duration(each.hold)} if each.hold else {}
        labels = {"severity": each.severity}
        return {
            **{"alert": each.name, "expr": each.expr},
            **hold,
            **{"labels": labels, "annotations": annotations},
        }

    rules: list[Recording | AlertRule] = [*recordings(times), *alerts(times)]
    return {"groups": [{"name": "smdt", "rules": [rule(each) for each in rules]}]}
