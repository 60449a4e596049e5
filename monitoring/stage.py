"""One run: does it learn, how fast, where does the time go, which rank holds it up."""

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

HERE = 'run="$run", stage="$stage"'
BY_RANK = "rank {{rank}} on {{host}}"
WINDOW = "$__rate_interval"


def stage() -> Dashboard:
    """Return the dashboard."""
    stages = 'label_values(smdt_run_info{run="$run"}, stage)'
    variables = [
        variable("run", "Run", "label_values(smdt_run_info, run)"),
        variable("stage", "Stage", stages),
    ]
    rows = {
        "Now": now(),
        "Who holds the others up": ranks(),
        "Where the time goes": time(),
        "Learning": learning(),
        "Checkpoints and memory": state(),
    }
    return make_dashboard(
        "SMDT: one run", "smdt-run", "A stage of a run, and its ranks.", rows, variables
    )


def now() -> list[Panel]:
    """Return how far the run is."""
    return [
        stat_panel("Step", "short", Query(f"max(smdt_step{{{HERE}}})", "")),
        stat_panel("Of", "short", Query(f"max(smdt_steps_planned{{{HERE}}})", "")),
        stat_panel("Epoch", "short", Query(f"max(smdt_epoch{{{HERE}}})", "")),
        stat_panel(
            "Time left",
            "s",
            Query(
                f"max(smdt_steps_planned{{{HERE}}} - smdt_step{{{HERE}}})"
                f" * avg(smdt:step:seconds{{{HERE}}})",
                "",
            ),
            about="At the present speed, without evaluations and checkpoints.",
        ),
        stat_panel("Samples a second", "short", Query(f"smdt:samples:rate{{{HERE}}}", "")),
        stat_panel(
            "Ranks",
            "short",
            Query(f"count(smdt_run_info{{{HERE}}})", ""),
        ),
    ]


def ranks() -> list[Panel]:
    """Return the panels by rank."""
    return [
        bar_gauge_panel(
            "Straggler: how much longer the others wait",
            "percentunit",
            Query(f"sort_desc(smdt:straggler_lag:ratio{{{HERE}}})", BY_RANK),
            about=(
                "Share of a step. The top rank delays the others; below zero, a rank "
                "waits for another one. Around zero everywhere: no rank is slow."
            ),
        ),
        bar_gauge_panel(
            "Own work in a step",
            "s",
            Query(f"sort_desc(smdt:own_work:seconds{{{HERE}}})", BY_RANK),
            about="Seconds of a step outside collectives: the straggler has most.",
        ),
        timeseries_panel(
            "Inside collectives",
            "percentunit",
            Query(f"smdt:collective_wait:ratio{{{HERE}}}", BY_RANK),
            about="Share of a step. The straggler has least.",
        ),
        timeseries_panel(
            "Waiting for data",
            "percentunit",
            Query(f"smdt:data_wait:ratio{{{HERE}}}", BY_RANK),
            about="Share of a step. A straggler that waits for data is slow because of its input.",
        ),
    ]


def time() -> list[Panel]:
    """Return what a step spends its time on."""
    steps = f"sum(rate(smdt_step_seconds_sum{{{HERE}}}[{WINDOW}]))"

    def share(metric: str) -> str:
        return f"sum(rate({metric}{{{HERE}}}[{WINDOW}])) / {steps}"

    wait = share("smdt_data_wait_seconds_total")
    collectives = share("smdt_collective_wait_seconds_total")
    return [
        timeseries_panel(
            "Where a step's time goes",
            "percentunit",
            Query(wait, "waiting for data"),
            Query(collectives, "in collectives"),
            Query(f"1 - ({wait}) - ({collectives})", "own work"),
            stacked=True,
            about="Over all ranks.",
        ),
        timeseries_panel(
            "Time of a step",
            "s",
            *(
                Query(
                    f"histogram_quantile({q}, sum by (le) "
                    f"(rate(smdt_step_seconds_bucket{{{HERE}}}[{WINDOW}])))",
                    name,
                )
                for q, name in ((0.5, "median"), (0.95, "slowest 5 %"))
            ),
        ),
        timeseries_panel(
            "Model FLOPs utilization",
            "percentunit",
            Query(f"smdt_model_flops_utilization{{{HERE}}}", BY_RANK),
        ),
        timeseries_panel(
            "The stage's step",
            "s",
            Query(
                f"rate(smdt_compute_seconds_total{{{HERE}}}[{WINDOW}])"
                f" / rate(smdt_steps_total{{{HERE}}}[{WINDOW}])",
                BY_RANK,
            ),
            about="By the device's clock, collectives included.",
        ),
    ]


def learning() -> list[Panel]:
    """Return what the run has learned."""
    return [
        timeseries_panel("Loss", "none", Query(f"avg by (term) (smdt_loss{{{HERE}}})", "{{term}}")),
        timeseries_panel(
            "Recall on the held-out split",
            "percentunit",
            Query(f"max by (protocol, k) (smdt_recall{{{HERE}}})", "{{protocol}} R@{{k}}"),
            about="Only the retrieval stage has it.",
        ),
        timeseries_panel(
            "Image quality on the held-out split",
            "none",
            Query(f"max by (metric) (smdt_image_quality{{{HERE}}})", "{{metric}}"),
            about="Only the alignment and segmentation stages have it.",
        ),
        timeseries_panel(
            "Learning rate",
            "sci",
            Query(f"max by (engine) (smdt_learning_rate{{{HERE}}})", "{{engine}}"),
        ),
        timeseries_panel(
            "Gradient norm before clipping",
            "none",
            Query(f"max by (engine) (smdt_gradient_norm{{{HERE}}})", "{{engine}}"),
        ),
        timeseries_panel(
            "Loss scale",
            "none",
            Query(f"max by (engine) (smdt_loss_scale{{{HERE}}})", "{{engine}}"),
            width=6,
        ),
        timeseries_panel(
            "Steps that were skipped or not finite",
            "none",
            Query(f"max by (engine) (smdt_skipped_steps_total{{{HERE}}})", "{{engine}} skipped"),
            Query(f"max(smdt_nonfinite_steps_total{{{HERE}}})", "not finite"),
            width=6,
        ),
    ]


def state() -> list[Panel]:
    """Return what the run keeps."""
    return [
        timeseries_panel(
            "Not saved yet",
            "s",
            Query(
                f"time() - max(smdt_checkpoint_last_success_timestamp_seconds{{{HERE}}})",
                "since the last checkpoint",
            ),
            width=8,
        ),
        timeseries_panel(
            "The last checkpoint",
            "s",
            Query(f"max(smdt_checkpoint_seconds{{{HERE}}})", "seconds"),
            width=4,
        ),
        timeseries_panel(
            "Its size",
            "bytes",
            Query(f"max(smdt_checkpoint_bytes{{{HERE}}})", "bytes"),
            width=4,
        ),
        timeseries_panel(
            "Device memory",
            "bytes",
            Query(f"smdt_device_memory_bytes{{{HERE}}}", "rank {{rank}} {{kind}}"),
            width=8,
        ),
    ]
