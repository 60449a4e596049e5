"""Throughput of the stages on GPUs: `smdt train` on each case, and what its steps measured."""

import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.base.errors import UserError
from smdt.stages import config as configuration
from smdt.stages.registry import make_stage
from smdt.training.checkpoints.run_folder import RunFolder
from smdt.training.deepspeed.settings import Precision
from smdt.training.loop.utilization import known_tflops

CONFIGS = Path(__file__).parent.parent.parent / "configs"
WARM_UP_STEPS = 20
"""Left out: what is tuned, compiled and allocated once."""
MEASURED_STEPS = 100

PAPER_TOWERS = (
    *("model.stem.kind=resnet", "model.width=768", "model.layers=12", "model.heads=12"),
    "model.hidden=3072",
)
"""R50 + ViT-B/16."""


@dataclass(frozen=True)
class Case:
    """A stage and its settings.

    Attributes:
        name: in the table.
        config: YAML below `configs/`.
        zero: ZeRO stage.
        precision: of forward and backward.
        batch: samples of a step on each GPU.
        overrides: of the YAML.
    """

    name: str
    config: str
    zero: int
    precision: Precision
    batch: int
    overrides: Sequence[str] = ()

    def __str__(self) -> str:
        return f"{self.name}, ZeRO {self.zero}, {self.precision}"

    @property
    def deepspeed_config(self) -> Path:
        """The DeepSpeed file."""
        return CONFIGS / "deepspeed" / f"zero{self.zero}.json"

    def settings(self, shards: Path, run: Path, gpus: int) -> list[str]:
        """Return all that the YAML does not say."""
        return [
            f"data.shards={shards}",
            f"run.out={run}",
            f"batch.global={self.batch * gpus}",
            f"precision={self.precision}",
            f"schedule.length={WARM_UP_STEPS + MEASURED_STEPS} steps",
            "schedule.warmup_steps=0",
            "evaluation.every=1000000 steps",
            "checkpoint.every=1000000 steps",
            *self.overrides,
        ]


RETRIEVAL = ("R50+ViT-B/16 towers", "cvusa/retrieval.yaml")
ALIGNMENT = ("GAN, 256x1024", "cvusa/alignment.yaml")
CASES = (
    *(Case(*RETRIEVAL, zero, "bf16", 16, PAPER_TOWERS) for zero in range(4)),
    Case(*RETRIEVAL, 2, "fp16", 16, PAPER_TOWERS),
    Case(*RETRIEVAL, 2, "fp32", 16, PAPER_TOWERS),
    *(Case(*ALIGNMENT, zero, "bf16", 4) for zero in (0, 2, 3)),
    Case("segmenter", "world/segmentation.yaml", 2, "bf16", 16, ["model.image_size=[224,1232]"]),
)
"""Cases whose batch fits 24 GiB."""


@dataclass(frozen=True)
class Figures:
    """Results of the measured steps of a case.

    Attributes:
        samples_per_second: over all GPUs.
        step_seconds: median.
        data_wait: share of the steps' time that waited for a batch.
        model_flops_utilization: share of the GPUs' peak that the method's own arithmetic is; None
            where the peak is not known.
    """

    samples_per_second: float
    step_seconds: float
    data_wait: float
    model_flops_utilization: float | None


def figures(
    records: Iterable[Mapping[str, Any]], global_batch: int, flops: float, tflops: float | None
) -> Figures:
    """Sum up the steps of a run (pure).

    Args:
        records: lines of `metrics.jsonl`.
        global_batch: samples of a step.
        flops: of a step.
        tflops: peak of all GPUs together, None if unknown.

    Raises:
        UserError: the run made no more steps than are left out.
    """
    steps = [record for record in records if record.get("step_seconds") is not None]
    measured = steps[WARM_UP_STEPS:]
    if not measured:
        raise UserError(f"the run made {len(steps)} steps, and the first {WARM_UP_STEPS} warm up")
    total = sum(record["step_seconds"] for record in measured)
    per_second = len(measured) / total
    return Figures(
        samples_per_second=global_batch * per_second,
        step_seconds=statistics.median(record["step_seconds"] for record in measured),
        data_wait=sum(record["data_wait_seconds"] for record in measured) / total,
        model_flops_utilization=None if tflops is None else flops * per_second / (tflops * 1e12),
    )


def measure(case: Case, shards: Path, folder: Path, gpus: int, gpu_name: str) -> Figures:
    """Train a case to its end and return what it measured.

    Args:
        case: what is trained.
        shards: on what.
        folder: where the run is written.
        gpus: how many train.
        gpu_name: of each.

    Raises:
        UserError: the training failed; the sentence says where its logs are.
    """
    run = RunFolder(folder / f"{Path(case.config).stem}-zero{case.zero}-{case.precision}")
    shutil.rmtree(run.root, ignore_errors=True)  # of an earlier call
    settings = case.settings(shards, run.root, gpus)
    config = configuration.load(CONFIGS / case.config, settings)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "smdt.cli", "train", "--config", CONFIGS / case.config),
            *("--deepspeed_config", case.deepspeed_config, "--ranks", str(gpus)),
            *settings,
        ],
        check=False,
    )
    if done.returncode != 0:
        raise UserError(f"training {case} ended with exit code {done.returncode}: {run.logs}")
    tflops = known_tflops(gpu_name, case.precision)
    return figures(
        run.read_metrics(),
        config.batch.global_batch,
        config.batch.global_batch * make_stage(config).flops_per_sample(),
        None if tflops is None else tflops * gpus,
    )
