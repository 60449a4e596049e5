"""A GAN step through DeepSpeed, compared with a plain loop with textbook layers in eager fp32.

python -m benchmarks.gan_step [--batch N] [--rounds N] [--zero STAGE] [--json FILE] [--profile]

Both start from the same decoded uint8 images and the same weights of the paper's widths, and end
with a step of the discriminators and one of the generators. The first losses are compared before
anything is timed. The methods take turns, so that a disturbance of the machine meets all of them.
A second plain loop, of our layers, shows what of the difference is theirs. All keep freed memory,
as training does.
"""

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.plain_gan import PlainGan, textbook
from benchmarks.turns import machine, speedups, summary, take_turns
from data_shards.format.classes import CLASS_COUNT
from smdt.data.batch import Batch
from smdt.data.order import DataState
from smdt.stages.alignment.config import AlignmentConfig
from smdt.stages.alignment.stage import AlignmentStage
from smdt.stages.config import load_deepspeed
from smdt.stages.setup import open_engines
from smdt.training.deepspeed.engine import init_distributed
from smdt.training.deepspeed.settings import Precision
from smdt.training.loop.stage import StepContext
from smdt.training.ranks.cpu import keep_freed_memory

DEEPSPEED_FILES = Path(__file__).parent.parent / "configs" / "deepspeed"
HEIGHT, WIDTH, SIDE = 128, 512, 384
PLAIN, OUR_LAYERS = "plain loop, fp32", "plain loop of our layers, fp32"
TOLERANCE: Mapping[str, float] = {"fp32": 1e-4, "bf16": 2e-2}
"""Largest relative difference of the first losses from the plain loop's."""

Losses = Mapping[str, float]
Step = Callable[[], Losses]


def make_config(batch: int, precision: Precision) -> AlignmentConfig:
    """Return the paper's networks at 128x512."""
    return AlignmentConfig.model_validate(
        {
            "stage": "alignment",
            "run": {"name": "benchmark", "out": "unused"},
            "data": {"shards": "unused"},
            "batch": {"global": batch},
            "geometry": {"panorama_size": [HEIGHT, WIDTH]},
            "precision": precision,
        }
    )


def make_batch(count: int) -> Batch:
    """Return pairs of training size: noise under a low-pass, and bands of classes."""
    pixels = torch.Generator().manual_seed(0)

    def images(height: int, width: int) -> torch.Tensor:
        coarse = torch.rand(count, 3, height // 8, width // 8, generator=pixels)
        smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
        return (255 * smooth).to(torch.uint8).movedim(1, 3).contiguous()

    bands = torch.arange(HEIGHT) * CLASS_COUNT // HEIGHT
    classes = bands.to(torch.uint8).view(1, HEIGHT, 1, 1).expand(count, HEIGHT, WIDTH, 1)
    return Batch(
        epoch=0,
        index=0,
        sample_ids=np.arange(count),
        shown=np.arange(count)[:, None],
        images={"aerial": images(SIDE, SIDE), "ground": images(HEIGHT, WIDTH), "seg": classes},
        heading_deg=np.zeros(count),
        extent_m=np.full(count, 172.0),
        elevation_min=np.full(count, -32.75),
        elevation_max=np.full(count, 32.75),
        state=DataState("", 0, 0, 0, ""),
    )


def fresh_stage(config: AlignmentConfig) -> AlignmentStage:
    """Return a stage with the weights of the seed."""
    torch.manual_seed(config.run.seed)
    return AlignmentStage(config)


def plain_step(batch: Batch, copy: Callable[[nn.Module], nn.Module]) -> Step:
    """Return a step to compare with."""
    config = make_config(len(batch.sample_ids), "fp32")
    plain = PlainGan(fresh_stage(config), config, copy)
    return lambda: plain.step(batch)


def our_step(batch: Batch, precision: Precision, zero: int, device: torch.device) -> Step:
    """Return a step of the stage under DeepSpeed, one rank."""
    config = make_config(len(batch.sample_ids), precision)
    stage = fresh_stage(config)
    settings = load_deepspeed(DEEPSPEED_FILES / f"zero{zero}.json")
    engines = open_engines(config, settings, stage, world_size=1)
    context = StepContext(0, config.run.seed, 0, 1, chunks=1, device=device, rate_factor=1.0)

    def step() -> Losses:
        losses = stage.step(engines, batch, context)
        return {term: float(value) for term, value in losses.items()}

    return step


def compare(first: Mapping[str, Losses]) -> dict[str, float]:
    """Return the largest relative difference of each method's first losses to the plain loop's."""
    differences = {}
    for name, losses in first.items():
        terms = first[PLAIN].items()
        differences[name] = max(abs(losses[term] - value) / abs(value) for term, value in terms)
        allowed = max(limit for kind, limit in TOLERANCE.items() if name.endswith(kind))
        assert differences[name] <= allowed, f"{name} computes something else: {losses}"
    return differences


def print_profile(step: Step) -> None:
    """Print the operators that take most of a step."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    typer.echo(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))


def main(
    batch: Annotated[int, typer.Option(help="Pairs of a step.")] = 2,
    rounds: Annotated[int, typer.Option(help="Turns of each method.")] = 9,
    zero: Annotated[int, typer.Option(help="ZeRO stage.")] = 2,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures.")] = None,
    show_profile: Annotated[bool, typer.Option("--profile", help="Print operators.")] = False,
) -> None:
    """Measure the GAN's step at 128x512 and the paper's widths against a plain loop in fp32."""
    device = init_distributed(600.0)
    pairs = make_batch(batch)
    keep_freed_memory()
    steps = {PLAIN: plain_step(pairs, textbook), OUR_LAYERS: plain_step(pairs, deepcopy)}
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in precisions:
        steps[f"smdt, ZeRO {zero}, {precision}"] = our_step(pairs, precision, zero, device)
    differences = compare({name: step() for name, step in steps.items()})
    figures = summary(take_turns(steps, rounds), against=PLAIN)
    for name, difference in differences.items():
        figures[name]["first_losses_off_by"] = difference
    console = Console()
    console.print(speedups(figures))
    console.print(f"{batch} pairs, {rounds} turns, {machine()}; first losses off by {differences}")
    if show_profile:
        for name, step in steps.items():
            typer.echo(name)
            print_profile(step)
    if json_file is not None:
        content = {"machine": machine(), "batch": batch, "zero": zero, "steps": figures}
        json_file.write_text(json.dumps(content, indent=2) + "\n")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)
