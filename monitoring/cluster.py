"""All runs at a glance: who makes progress, how fast, on what, and what is wrong."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from monitoring.panels import (
    Panel,
    Query,
    bar_gauge_panel,
    make_dashboard,
    stat_panel,
    timeseries_panel,
)

RUN = "{{run}} {{stage}}"


def cluster() -> Dashboard:
    """Return the dashboard."""
    rows = {"Now": now(), "Progress": progress(), "Use of the devices": use()}
    return make_dashboard(
        "SMDT: cluster", "smdt-cluster", "All runs, shard jobs and launchers.", rows
    )


def now() -> list[Panel]:
    """Return the figures of this moment."""
    firing = 'count(ALERTS{alertname=~"Smdt.*", alertstate="firing"}) or vector(0)'
    silent = 'count(up{job="smdt"} == 0) or vector(0)'
    return [
        stat_panel("Alerts", "short", Query(firing, ""), about="See docs/runbook.md"),
        stat_panel("Ranks that train", "short", Query("count(smdt_step)", "")),
        stat_panel("Endpoints that do not answer", "short", Query(silent, "")),
        stat_panel("Samples a second", "short", Query("sum(smdt:samples:rate)", "")),
        stat_panel(
            "Restarts",
            "short",
            Query("sum(smdt_launcher_restarts_total)", ""),
            about="By the launchers that run.",
        ),
        stat_panel(
            "Hosts",
            "short",
            Query("sum by (state) (smdt_launcher_hosts)", "{{state}}"),
            about="As the launchers see them; left out: the preflight failed there.",
        ),
    ]


def progress() -> list[Panel]:
    """Return how far every run is."""
    done = "sort_desc(max by (run, stage) (smdt_step / smdt_steps_planned))"
    stepped = "time() - max by (run, stage) (smdt_last_step_timestamp_seconds)"
    saved = "time() - max by (run, stage) (smdt_checkpoint_last_success_timestamp_seconds)"
    return [
        bar_gauge_panel("Part of the run that is done", "percentunit", Query(done, RUN)),
        timeseries_panel("Samples a second", "short", Query("smdt:samples:rate", RUN)),
        timeseries_panel(
            "Since the last step",
            "s",
            Query(stepped, RUN),
            about="Grows during evaluations and checkpoints too.",
        ),
        timeseries_panel(
            "Not saved yet",
            "s",
            Query(saved, RUN),
            about="Training that a failure now would cost.",
        ),
    ]


def use() -> list[Panel]:
    """Return what the devices do with their time and memory."""
    memory = "max by (run, stage, kind) (smdt_device_memory_bytes)"
    return [
        timeseries_panel(
            "Model FLOPs utilization",
            "percentunit",
            Query("avg by (run, stage) (smdt_model_flops_utilization)", RUN),
            about="For devices with a known peak: docs/metrics.md",
        ),
        timeseries_panel("Memory of the fullest device", "bytes", Query(memory, RUN + " {{kind}}")),
        timeseries_panel(
            "Waiting for data",
            "percentunit",
            Query("max by (run, stage) (smdt:data_wait:ratio)", RUN),
            about="Wait of the rank that waits most, share of a step.",
        ),
        timeseries_panel(
            "Waiting for the slowest rank",
            "percentunit",
            Query("max by (run, stage) (smdt:straggler_lag:ratio)", RUN),
            about=(
                "Additional time of the other ranks in collectives, share of a step; "
                "the run's own dashboard names the rank."
            ),
        ),
    ]
