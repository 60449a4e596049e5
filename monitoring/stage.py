"""One run: does it learn, how fast, where does the time go, which rank holds it up."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from monitoring.panels import Panel, Query, lines, numbers, page, ranking, variable

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
    return page("SMDT: one run", "smdt-run", "A stage of a run, and its ranks.", rows, variables)


def now() -> list[Panel]:
    """Return how far the run is."""
    return [
        numbers("Step", "short", Query(f"max(smdt_step{{{HERE}}})", "")),
        numbers("Of", "short", Query(f"max(smdt_steps_planned{{{HERE}}})", "")),
        numbers("Epoch", "short", Query(f"max(smdt_epoch{{{HERE}}})", "")),
        numbers(
            "Time left",
            "s",
            Query(
                f"max(smdt_steps_planned{{{HERE}}} - smdt_step{{{HERE}}})"
                f" * avg(smdt:step:seconds{{{HERE}}})",
                "",
            ),
            about="At the present speed, without evaluations and checkpoints.",
        ),
        numbers("Samples a second", "short", Query(f"smdt:samples:rate{{{HERE}}}", "")),
        numbers(
            "Ranks",
            "short",
            Query(f"count(smdt_run_info{{{HERE}}})", ""),
        ),
    ]


def ranks() -> list[Panel]:
    """Return the panels by rank."""
    return [
        ranking(
            "Straggler: how much longer the others wait",
            "percentunit",
            Query(f"sort_desc(smdt:straggler_lag:ratio{{{HERE}}})", BY_RANK),
            about=(
                "Share of a step. The top rank delays the others; below zero, a rank "
                "waits for another one. Around zero everywhere: no rank is slow."
            ),
        ),
        ranking(
            "Own work in a step",
            "s",
            Query(f"sort_desc(smdt:own_work:seconds{{{HERE}}})", BY_RANK),
            about="Seconds of a step outside collectives: the straggler has most.",
        ),
        lines(
            "Inside collectives",
            "percentunit",
            Query(f"smdt:collective_wait:ratio{{{HERE}}}", BY_RANK),
            about="Share of a step. The straggler has least.",
        ),
        lines(
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
        lines(
            "Where a step's time goes",
            "percentunit",
            Query(wait, "waiting for data"),
            Query(collectives, "in collectives"),
            Query(f"1 - ({wait}) - ({collectives})", "own work"),
            stacked=True,
            about="Over all ranks.",
        ),
        lines(
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
        lines(
            "Model FLOPs utilization",
            "percentunit",
            Query(f"smdt_model_flops_utilization{{{HERE}}}", BY_RANK),
        ),
        lines(
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
        lines("Loss", "none", Query(f"avg by (term) (smdt_loss{{{HERE}}})", "{{term}}")),
        lines(
            "Recall on the held-out split",
            "percentunit",
            Query(f"max by (protocol, k) (smdt_recall{{{HERE}}})", "{{protocol}} R@{{k}}"),
            about="Only the retrieval stage has it.",
        ),
        lines(
            "Image quality on the held-out split",
            "none",
            Query(f"max by (metric) (smdt_image_quality{{{HERE}}})", "{{metric}}"),
            about="Only the alignment and segmentation stages have it.",
        ),
        lines(
            "Learning rate",
            "sci",
            Query(f"max by (engine) (smdt_learning_rate{{{HERE}}})", "{{engine}}"),
        ),
        lines(
            "Gradient norm before clipping",
            "none",
            Query(f"max by (engine) (smdt_gradient_norm{{{HERE}}})", "{{engine}}"),
        ),
        lines(
            "Loss scale",
            "none",
            Query(f"max by (engine) (smdt_loss_scale{{{HERE}}})", "{{engine}}"),
            width=6,
        ),
        lines(
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
        lines(
            "Not saved yet",
            "s",
            Query(
                f"time() - max(smdt_checkpoint_last_success_timestamp_seconds{{{HERE}}})",
                "since the last checkpoint",
            ),
            width=8,
        ),
        lines(
            "The last checkpoint",
            "s",
            Query(f"max(smdt_checkpoint_seconds{{{HERE}}})", "seconds"),
            width=4,
        ),
        lines(
            "Its size",
            "bytes",
            Query(f"max(smdt_checkpoint_bytes{{{HERE}}})", "bytes"),
            width=4,
        ),
        lines(
            "Device memory",
            "bytes",
            Query(f"smdt_device_memory_bytes{{{HERE}}}", "rank {{rank}} {{kind}}"),
            width=8,
        ),
    ]
