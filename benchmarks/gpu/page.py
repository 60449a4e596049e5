"""The results, as the last section of `docs/gpu.md`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.gpu.checks import Check
from benchmarks.gpu.training import Case, Figures

HEADING = "## Results"


@dataclass(frozen=True)
class Results:
    """All that one run of the program found.

    Attributes:
        machine: what it ran on, by subject.
        checks: by test file.
        decoding: images a second, by view and device.
        training: by case, None where it failed.
    """

    machine: Mapping[str, str]
    checks: Sequence[Check]
    decoding: Mapping[str, Mapping[str, float]]
    training: Sequence[tuple[Case, Figures | None]]


def with_results(page: str, results: Results) -> str:
    """Return the page with its last section replaced (pure)."""
    before, heading, _ = page.partition(f"\n{HEADING}\n")
    assert heading, "the page says where the results go"
    parts = [
        before.rstrip(),
        HEADING,
        "\n".join(f"- {subject}: {what}" for subject, what in results.machine.items()),
        _checks(results.checks),
        _decoding(results.decoding),
        _training(results.training),
    ]
    return "\n\n".join(parts) + "\n"


def _checks(checks: Sequence[Check]) -> str:
    rows = [
        (check.file, str(check.passed), ", ".join(check.failed) or "none", f"{check.seconds:.0f}")
        for check in checks
    ]
    return _table(("tests", "passed", "not passed", "seconds"), rows)


def _decoding(decoding: Mapping[str, Mapping[str, float]]) -> str:
    rows = [
        (view, f"{rates['cpu']:.0f}", f"{rates['gpu']:.0f}", f"{rates['gpu'] / rates['cpu']:.1f}")
        for view, rates in decoding.items()
    ]
    return _table(("decoding, images/s", "all cores", "one GPU", "times"), rows)


def _training(training: Sequence[tuple[Case, Figures | None]]) -> str:
    header = ("training", "ZeRO", "precision", "batch a GPU", "samples/s", "step, ms", "data wait")
    rows = [
        (case.name, str(case.zero), case.precision, str(case.batch), *_cells(found))
        for case, found in training
    ]
    return _table((*header, "FLOPs used"), rows)


def _cells(found: Figures | None) -> tuple[str, str, str, str]:
    if found is None:
        return ("failed", "", "", "")
    used = found.model_flops_utilization
    return (
        f"{found.samples_per_second:.1f}",
        f"{1e3 * found.step_seconds:.1f}",
        f"{found.data_wait:.1%}",
        "unknown" if used is None else f"{used:.1%}",
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
