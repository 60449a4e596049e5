"""Shard jobs: how much is done, how fast, what was rejected."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from monitoring.panels import (
    Panel,
    Query,
    bar_gauge_panel,
    make_dashboard,
    stat_panel,
    timeseries_panel,
    variable,
)

HERE = 'run=~"$set"'
TASK = "{{run}} task {{rank}}"
WINDOW = "$__rate_interval"


def shards() -> Dashboard:
    """Return the dashboard."""
    sets = "label_values(smdt_shards_planned, run)"
    variables = [variable("set", "Data set", sets, several=True)]
    about = "Jobs of `smdt shards build --metrics-targets`."
    return make_dashboard("SMDT: shard jobs", "smdt-shards", about, {"Jobs": jobs()}, variables)


def jobs() -> list[Panel]:
    """Return the panels."""
    done, planned = f"smdt_shards_done{{{HERE}}}", f"smdt_shards_planned{{{HERE}}}"
    samples = f"rate(smdt_shards_samples_total{{{HERE}}}[{WINDOW}])"
    return [
        stat_panel("Shards done", "short", Query(f"sum({done})", ""), width=6),
        stat_panel("Shards planned", "short", Query(f"sum({planned})", ""), width=6),
        stat_panel(
            "Samples written",
            "short",
            Query(f"sum(smdt_shards_samples_total{{{HERE}}})", ""),
            width=6,
        ),
        stat_panel(
            "Rows rejected",
            "short",
            Query(f"sum(smdt_shards_rejected_total{{{HERE}}}) or vector(0)", ""),
            width=6,
        ),
        bar_gauge_panel(
            "Part that is done",
            "percentunit",
            Query(f"sort({done} / {planned})", TASK),
            about="The task that is furthest behind comes first.",
        ),
        timeseries_panel("Samples a second", "short", Query(samples, TASK)),
        timeseries_panel(
            "Bytes of tars a second",
            "Bps",
            Query(f"rate(smdt_shards_bytes_total{{{HERE}}}[{WINDOW}])", TASK),
        ),
        timeseries_panel(
            "Rejected rows",
            "short",
            Query(
                f"sum by (run, reason) (smdt_shards_rejected_total{{{HERE}}})",
                "{{run}} {{reason}}",
            ),
            about="rejected.jsonl of the data set lists them.",
        ),
    ]
