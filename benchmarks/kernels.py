"""Number of GPU kernels of a step of the paper's towers, by ZeRO stage.

python -m benchmarks.kernels [--precision bf16|fp32] [--json FILE]

A GPU that waits for the next kernel to be started does nothing: on one H200 steps took as long as
their kernels were many (docs/gpu.md). They are counted on the CPU: calls of torch's operators that
are not views, of the second step of one rank. Their number does not depend on the batch.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.ranks import run_ranks
from benchmarks.retrieval_step import make_batch, make_config, our_step
from smdt.stages.retrieval.stage import RetrievalStage
from smdt.training.deepspeed.engine import Engine
from smdt.training.deepspeed.settings import Precision

BATCH = 2
PHASES = ("forward", "backward", "optimizer")
PHASE_OF = {"forward": "forward", "backward": "backward", "step": "optimizer"}
"""What the engine's methods belong to; all else of a step makes images and the loss."""


class Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Counts the operators that are called in it, by phase."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = "rest"
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Call the operator."""
        if not func.is_view:
            self.counts[self.phase] = self.counts.get(self.phase, 0) + 1
        return func(*args, **(kwargs or {}))


def watch_engine(kernels: Kernels) -> None:
    """Let the engine's methods say which phase of a step it is."""

    def watched(method: Callable[..., object], phase: str) -> Callable[..., object]:
        def call(*args: object) -> object:
            before, kernels.phase = kernels.phase, phase
            try:
                return method(*args)
            finally:
                kernels.phase = before

        return call

    for name, phase in PHASE_OF.items():
        setattr(Engine, name, watched(getattr(Engine, name), phase))


def count(precision: Precision, zero: int, out: Path) -> None:
    """Make two steps on one rank; write the second's counts."""
    kernels = Kernels()
    watch_engine(kernels)
    config = make_config(BATCH, precision)
    step = our_step(RetrievalStage(config), make_batch(BATCH), config, zero)
    step()
    with kernels:
        step()
    out.write_text(json.dumps(kernels.counts))


def main(
    precision: Annotated[Precision, typer.Option(help="Dtype of forward and backward.")] = "bf16",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the counts.")] = None,
) -> None:
    """Count the kernels of a step for every ZeRO stage."""
    table = Table("ZeRO", *PHASES, "images and loss", "together")
    rows = []
    for zero in range(4):
        with TemporaryDirectory() as folder:
            out = Path(folder) / "counts.json"
            run_ranks(1, count, precision, zero, out)
            counts = json.loads(out.read_text())
        rows.append({"zero": zero, "counts": counts})
        cells = (counts.get(phase, 0) for phase in (*PHASES, "rest"))
        table.add_row(str(zero), *(f"{cell:,}" for cell in cells), f"{sum(counts.values()):,}")
    Console().print(table)
    if json_file is not None:
        content = {"torch": torch.__version__, "precision": precision, "rows": rows}
        json_file.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
