"""A retrieval step through DeepSpeed, compared with a plain loop over timm's network in fp32.

python -m benchmarks.retrieval_step [--precision bf16|fp32] [--batch N] [--rounds N] [--zero STAGE]
    [--json FILE] [--profile]

Two towers R50+ViT-B/16 at 128x512 with plain attention, which timm has too, the same weights in
all: from uint8 images to a step of AdamW with clipping. The first losses without dropout are
compared before anything is timed. A second plain loop, of our layers, shows what of the difference
is theirs. All keep freed memory, as training does.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import timm
import torch
import typer
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.profiler import ProfilerActivity, profile

from benchmarks.turns import machine, speedups, summary, take_turns
from smdt.data.batch import Batch
from smdt.data.order import DataState
from smdt.losses.contrastive import SoftMarginConfig, local_soft_margin_loss, negative_mask
from smdt.models.towers.hybrid import HybridTower
from smdt.models.towers.stem import STRIDE
from smdt.models.towers.weight_names import from_timm
from smdt.models.towers.weights import load_tensors
from smdt.stages.config import load_deepspeed
from smdt.stages.retrieval.config import RetrievalConfig
from smdt.stages.retrieval.stage import RetrievalStage
from smdt.stages.setup import open_engines
from smdt.training.deepspeed.engine import init_distributed
from smdt.training.deepspeed.settings import Precision
from smdt.training.loop.stage import StepContext
from smdt.training.ranks.cpu import keep_freed_memory

DEEPSPEED_FILES = Path(__file__).parent.parent / "configs" / "deepspeed"
SIZE = (128, 512)
TILE = 384
"""Side of the aerial images: training size."""
DROPOUT = 0.1
TIMM, OUR_LAYERS = "plain loop, timm's network, fp32", "plain loop, our layers, fp32"
TOLERANCE: Mapping[Precision, float] = {"fp32": 1e-4, "bf16": 2e-2}
"""Largest relative difference of the first losses from the plain loop's."""

Step = Callable[[], float]


def timm_network() -> Any:  # noqa: ANN401  (timm's own)
    """Build timm's hybrid with the published epsilons, and no dropout after attention."""
    network: Any = timm.create_model(
        "vit_base_r50_s16_224",
        img_size=SIZE,
        num_classes=0,
        pos_drop_rate=DROPOUT,
        proj_drop_rate=DROPOUT,
    )
    for module in network.modules():
        match type(module).__name__:
            case "StdConv2dSame":
                module.eps = 1e-10
            case "GroupNormAct":
                module.eps = 1e-6
            case "Attention":
                module.proj_drop = nn.Identity()
    return network


class TimmTowers(nn.Module):
    """The same two towers by others."""

    def __init__(self) -> None:
        super().__init__()
        self.ground: Any = timm_network()
        self.aerial: Any = timm_network()

    def forward(self, ground: Tensor, aerial: Tensor) -> tuple[Tensor, Tensor]:
        """Descriptors [B, 768] of images [B, 3, H, W] with values 0 to 255."""
        ground_BD, aerial_BD = (
            normalize(tower.forward_features(images.float() / 127.5 - 1)[:, 0], dim=-1)
            for tower, images in ((self.ground, ground), (self.aerial, aerial))
        )
        return ground_BD, aerial_BD


def make_config(batch: int, precision: Precision) -> RetrievalConfig:
    """Return the paper's towers at 128x512."""
    return RetrievalConfig.model_validate(
        {
            "stage": "retrieval",
            "run": {"name": "benchmark", "out": "unused"},
            "data": {"shards": "unused"},
            "batch": {"global": batch},
            "aerial": "polar",
            "geometry": {"panorama_size": SIZE},
            "model": {"backbone": "r50_vit_b16", "attention": "self", "dropout": DROPOUT},
            "precision": precision,
        }
    )


def make_stage(config: RetrievalConfig, same_as: TimmTowers) -> RetrievalStage:
    """Return a stage with the weights of timm's towers."""
    stage = RetrievalStage(config)
    for ours, theirs in (
        (stage.towers.ground, same_as.ground),
        (stage.towers.aerial, same_as.aerial),
    ):
        assert isinstance(ours, HybridTower), "the configuration says so"
        # timm's files have a square grid of positions; this one is the image's
        grid = theirs.pos_embed[:, 1:].unflatten(1, (SIZE[0] // STRIDE, SIZE[1] // STRIDE))
        load_tensors(
            ours,
            {name: p for name, p in theirs.named_parameters() if name != "pos_embed"},
            "timm",
            from_timm,
        )
        with torch.no_grad():
            ours.encoder.class_position.copy_(theirs.pos_embed[:, :1])
            ours.encoder.positions.copy_(grid)
    return stage


def make_batch(count: int) -> Batch:
    """Return pairs of training size, noise."""
    pixels = np.random.default_rng(0)

    def images(height: int, width: int) -> Tensor:
        return torch.from_numpy(pixels.integers(0, 256, (count, height, width, 3), np.uint8))

    return Batch(
        epoch=0,
        index=0,
        sample_ids=np.arange(count),
        images={"aerial": images(TILE, TILE), "ground": images(*SIZE)},
        heading_deg=np.zeros(count),
        extent_m=np.full(count, 172.0),
        elevation_min=np.full(count, -32.75),
        elevation_max=np.full(count, 32.75),
        state=DataState("", 0, 0, 0, ""),
        shown=np.arange(count).reshape(-1, 1),
    )


def whole_loss(ground: Tensor, aerial: Tensor) -> Tensor:
    """Return the paper's loss of a batch in one process."""
    rows = slice(0, len(ground))
    wrong = negative_mask(torch.arange(len(ground)).unsqueeze(1), rows)
    return local_soft_margin_loss(ground, aerial, rows, wrong, SoftMarginConfig().gamma)


def plain_step(
    stage: RetrievalStage, towers: nn.Module, batch: Batch, config: RetrievalConfig
) -> Step:
    """Return a step without DeepSpeed of towers whose inputs the stage makes."""
    chosen = config.optimizer
    optimizer = torch.optim.AdamW(
        towers.parameters(),
        lr=chosen.learning_rate,
        weight_decay=chosen.weight_decay,
        betas=chosen.betas,
        eps=chosen.epsilon,
    )
    everything = slice(0, len(batch.sample_ids))

    def step() -> float:
        towers.train()
        ground, aerial = towers(*stage.images(batch, everything))
        loss = whole_loss(ground, aerial)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(towers.parameters(), chosen.gradient_clipping)
        optimizer.step()
        return float(loss)

    return step


def our_step(stage: RetrievalStage, batch: Batch, config: RetrievalConfig, zero: int) -> Step:
    """Return a step of the stage under DeepSpeed, one rank."""
    settings = load_deepspeed(DEEPSPEED_FILES / f"zero{zero}.json")
    engines = open_engines(config, settings, stage, world_size=1)
    device = torch.device("cpu")
    context = StepContext(0, config.run.seed, 0, 1, chunks=1, device=device, rate_factor=1.0)
    return lambda: float(stage.step(engines, batch, context)["loss"])


@torch.no_grad()
def first_loss(stage: RetrievalStage, towers: nn.Module, batch: Batch) -> float:
    """Return the loss without dropout."""
    everything = slice(0, len(batch.sample_ids))
    ground, aerial = towers.eval()(*stage.images(batch, everything))
    return float(whole_loss(ground, aerial))


def print_profile(step: Step, console: Console) -> None:
    """Print the operators that take most of a step."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    console.print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=18))


def main(
    precision: Annotated[str, typer.Option(help="Precision of our step: bf16 or fp32.")] = "bf16",
    batch: Annotated[int, typer.Option(help="Pairs of a step.")] = 4,
    rounds: Annotated[int, typer.Option(help="Turns of each method.")] = 7,
    zero: Annotated[int, typer.Option(help="ZeRO stage.")] = 2,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures.")] = None,
    show_profile: Annotated[bool, typer.Option("--profile", help="Print operators.")] = False,
) -> None:
    """Measure a step of retrieval with R50+ViT-B/16 against plain loops in fp32."""
    init_distributed(600.0)
    keep_freed_memory()
    config = make_config(batch, "fp32" if precision == "fp32" else "bf16")
    pairs = make_batch(batch)
    torch.manual_seed(config.run.seed)
    theirs = TimmTowers()
    ours, plain = make_stage(config, theirs), make_stage(config, theirs)
    engine = f"smdt, ZeRO {zero}, {config.precision}"
    step = our_step(ours, pairs, config, zero)
    losses = {
        name: first_loss(plain, towers, pairs)
        for name, towers in ((TIMM, theirs), (OUR_LAYERS, plain.towers), (engine, ours.towers))
    }
    for name, loss in losses.items():
        off = abs(loss - losses[TIMM]) / losses[TIMM]
        assert off <= TOLERANCE[config.precision], f"{name} computes something else: {losses}"
    steps = {
        TIMM: plain_step(plain, theirs, pairs, config),
        OUR_LAYERS: plain_step(plain, plain.towers, pairs, config),
        engine: step,
    }
    figures = summary(take_turns(steps, rounds), against=TIMM)
    console = Console()
    console.print(speedups(figures))
    console.print(f"{batch} pairs, {rounds} turns, {machine()}; first losses {losses}")
    if show_profile:
        for name, each in steps.items():
            console.print(name)
            print_profile(each, console)
    if json_file is not None:
        content = {"machine": machine(), "batch": batch, "zero": zero, "first_losses": losses}
        json_file.write_text(json.dumps({**content, "steps": figures}, indent=2) + "\n")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)
