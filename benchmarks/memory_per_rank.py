"""Memory of the model's states on a rank, compared with DeepSpeed's formula.

python -m benchmarks.memory_per_rank [--ranks 1 --ranks 2 ...] [--layers N] [--json FILE]

States are parameters, gradients and the optimizer's. Ranks train square layers without biases in
bf16 with the shipped DeepSpeed configurations, on few rows, so that activations take almost no
memory. *In a step* is the highest resident memory of a step after the first two, *between steps*
what stays; both without what the process held before it had a model. The highest rank counts.
"""

import json
import os
import platform
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import torch.distributed as dist
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.ranks import WIDTH, open_engine, run_ranks, step

ZERO_STAGES = range(4)
STEPS = 4
SETTLED = 2
"""Steps after which no new memory is allocated."""


def formula_bytes(parameters: int, zero: int, ranks: int) -> float:
    """Return what DeepSpeed says a rank needs without offloading.

    Its estimators for stages 2 and 3 count 2 bytes of bf16 parameter, 2 of bf16 gradient, and in
    fp32 4 of gradient, 4 of parameter and 8 of moments; each stage shares out one more of
    optimizer (1), gradients (2), parameters (3).
    """
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    if zero < 2:
        gradients, optimizer = 2 + 4, 4 + 8
        return parameters * (2 + gradients + optimizer / (ranks if zero == 1 else 1))
    if zero == 2:
        return float(estimate_zero2_model_states_mem_needs(parameters, ranks, cpu_offload=False)[1])
    _, needed, _ = estimate_zero3_model_states_mem_needs(
        parameters, WIDTH * WIDTH, ranks, cpu_offload=False, cpu_offload_params=False
    )
    return float(needed)


def resident_bytes(field: str) -> float:
    """Return a figure of this process from the kernel: VmRSS now, VmHWM since it was reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024.0 * int(line.split()[1])
    raise AssertionError(field)


def hold(zero: int, layers: int, out: Path) -> None:
    """Train on one rank; write the bytes between steps and in a step."""
    step(open_engine(zero, 1))  # what DeepSpeed loads at its first use is not the model's
    before = resident_bytes("VmRSS")
    engine = open_engine(zero, layers)
    for number in range(STEPS):
        if number == SETTLED:
            Path("/proc/self/clear_refs").write_text("5")
        step(engine)
    held = resident_bytes("VmRSS") - before, resident_bytes("VmHWM") - before
    (out / f"rank-{dist.get_rank()}.json").write_text(json.dumps(held))


def measure(ranks: int, zero: int, layers: int) -> tuple[float, float]:
    """Return the bytes between steps and in a step, of the rank that holds most."""
    with TemporaryDirectory() as folder:
        run_ranks(ranks, hold, zero, layers, Path(folder))
        found = [json.loads(file.read_text()) for file in Path(folder).iterdir()]
    return max(each[0] for each in found), max(each[1] for each in found)


def main(
    ranks: Annotated[list[int], typer.Option(help="Numbers of ranks.")] = [1, 2],  # noqa: B006 (typer's)
    layers: Annotated[int, typer.Option(help=f"Layers of {WIDTH}x{WIDTH}.")] = 192,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures.")] = None,
) -> None:
    """Measure what a rank holds in training, for every ZeRO stage."""
    # Freed memory goes back to the kernel, so that resident is what is held.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    parameters = layers * WIDTH * WIDTH
    table = Table("ranks", "ZeRO", "formula MB", "between steps MB", "in a step MB", "of formula")
    rows = []
    for count in ranks:
        for zero in ZERO_STAGES:
            said = formula_bytes(parameters, zero, count)
            between, inside = measure(count, zero, layers)
            rows.append(
                {
                    "ranks": count,
                    "zero": zero,
                    "formula_bytes": said,
                    "between_steps_bytes": between,
                    "in_step_bytes": inside,
                }
            )
            megabytes = (f"{value / 1e6:.0f}" for value in (said, between, inside))
            table.add_row(str(count), str(zero), *megabytes, f"{inside / said:.0%}")
    console = Console()
    console.print(table)
    console.print(f"{parameters / 1e6:.1f} million parameters")
    if json_file is not None:
        machine = {"machine": platform.machine(), "torch": torch.__version__}
        content = {"machine": machine, "parameters": parameters, "rows": rows}
        json_file.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
