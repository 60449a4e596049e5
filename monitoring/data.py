"""The data plane of one run: reading, waiting, damage."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from monitoring.panels import (
    Panel,
    Query,
    bar_gauge_panel,
    make_dashboard,
    timeseries_panel,
    variable,
)

HERE = 'run="$run"'
BY_RANK = "{{stage}} rank {{rank}} on {{host}}"
WINDOW = "$__rate_interval"


def data() -> Dashboard:
    """Return the dashboard."""
    rows = {"Reading": reading(), "Damage": damage()}
    variables = [variable("run", "Run", "label_values(smdt_run_info, run)")]
    about = "Bytes from storage to the step, and what could not be read."
    return make_dashboard("SMDT: data plane", "smdt-data", about, rows, variables)


def reading() -> list[Panel]:
    """Return how fast storage answers, and whether steps wait for it."""
    seconds = f"sum by (le) (rate(smdt_read_seconds_bucket{{{HERE}}}[{WINDOW}]))"
    quantiles = ((0.5, "median"), (0.95, "slowest 5 %"), (0.99, "slowest 1 %"))
    return [
        timeseries_panel(
            "Read from shards",
            "Bps",
            Query(f"rate(smdt_read_bytes_total{{{HERE}}}[{WINDOW}])", BY_RANK),
        ),
        timeseries_panel(
            "Time to read one part of a sample",
            "s",
            *(Query(f"histogram_quantile({q}, {seconds})", name) for q, name in quantiles),
        ),
        timeseries_panel(
            "Waiting for data",
            "percentunit",
            Query(f"smdt:data_wait:ratio{{{HERE}}}", BY_RANK),
            about="Share of a step; the goal is zero, reading is ahead of training.",
        ),
        bar_gauge_panel(
            "Ranks that wait for data most",
            "percentunit",
            Query(f"topk(8, smdt:data_wait:ratio{{{HERE}}})", BY_RANK),
        ),
        timeseries_panel(
            "Reads a sample",
            "short",
            Query(
                f"sum by (stage) (rate(smdt_read_seconds_count{{{HERE}}}[{WINDOW}]))"
                f" / sum by (stage) (rate(smdt_samples_total{{{HERE}}}[{WINDOW}]))",
                "{{stage}}",
            ),
            about="Parts of a sample, and replacements; more while samples are prefetched.",
        ),
        timeseries_panel(
            "Epoch", "short", Query(f"max by (stage) (smdt_epoch{{{HERE}}})", "{{stage}}")
        ),
    ]


def damage() -> list[Panel]:
    """Return what was replaced."""
    return [
        timeseries_panel(
            "Damaged samples that were replaced",
            "short",
            Query(
                f"sum by (reason) (smdt_quarantined_samples_total{{{HERE}}})",
                "{{reason}}",
            ),
            about="Since the processes started; quarantine.jsonl of the run lists them.",
        ),
        timeseries_panel(
            "Share of the samples",
            "percentunit",
            Query(
                f"sum(rate(smdt_quarantined_samples_total{{{HERE}}}[{WINDOW}]))"
                f" / sum(rate(smdt_samples_total{{{HERE}}}[{WINDOW}]))",
                "damaged",
            ),
        ),
    ]
