"""Run by `deepspeed` on every rank: what each loss, ZeRO stage and chunk count makes of a run.

Arguments: YAML of the run, folder of the DeepSpeed files, losses and chunk counts, each as `1,2`,
and where rank 0 writes as JSON, for each case, the loss of every step and, in fp32, how far the
first step's gradient is from that of one process which holds the whole batch.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_optimizer_state

from smdt.stages import config as configuration
from smdt.stages.registry import make_stage
from smdt.stages.retrieval.config import RetrievalConfig
from smdt.stages.retrieval.stage import ENGINE, RetrievalStage
from smdt.stages.setup import open_engines, open_loader
from smdt.telemetry.metrics import TrainingMetrics
from smdt.training.checkpoints.run_folder import RunFolder
from smdt.training.deepspeed.engine import init_distributed
from smdt.training.loop.stage import StepContext
from tests.plain_losses import PLAIN_LOSSES

STEPS = 20
Gradient = dict[str, torch.Tensor]


class Watched:
    """An engine that keeps the gradient that its first step was made from.

    After one step Adam's first moment is that gradient times 1 - beta, however it is spread over
    ranks; before the step ZeRO does not hand it out.
    """

    def __init__(self, engine, beta: float) -> None:
        self._engine = engine
        self._beta = beta
        self.first: Gradient = {}

    def __getattr__(self, name: str):
        return getattr(self._engine, name)

    def step(self, rate_factor: float) -> None:
        self._engine.step(rate_factor)
        if not self.first:
            optimizer = self._engine._engine.optimizer
            if hasattr(optimizer, "_hp_optimizer_states_linked"):
                # ZeRO 1 and 2 link all parameters with their moments after the first group's step,
                # when the other groups have none yet.
                optimizer._hp_optimizer_states_linked = False
                optimizer._lazy_init_hp_params_optimizer_state()
            named = self._engine.module.named_parameters()
            self.first = {name: self._moment(p) / (1 - self._beta) for name, p in named}

    def _moment(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        moment = safe_get_full_optimizer_state(parameter, "exp_avg")
        if moment is None:  # without ZeRO the optimizer is torch's own
            moment = self._engine._engine.optimizer.state[parameter]["exp_avg"]
        return moment.clone()


def moved(images, device):
    return images.to(device) if torch.is_tensor(images) else [each.to(device) for each in images]


def batches(config: RetrievalConfig, rank: int, world_size: int, device) -> Iterator:
    """The first batches of a rank, or of the only process there is.

    Decoded on the CPU: a GPU rounds the pixels otherwise, which shows in the losses' fourth digit.
    """
    cpu, metrics = torch.device("cpu"), TrainingMetrics("test", "retrieval", rank)
    loader = open_loader(config, RunFolder(config.run.out), metrics, rank, world_size, cpu)
    with closing(loader.stream(loader.start, epochs=1 + STEPS // loader.steps_per_epoch)) as stream:
        for _, batch in zip(range(STEPS), stream, strict=False):
            images = {view: moved(batch.images[view], device) for view in batch.images}
            yield replace(batch, images=images)


def fresh_stage(config: RetrievalConfig) -> RetrievalStage:
    torch.manual_seed(config.run.seed)
    stage = make_stage(config)
    assert isinstance(stage, RetrievalStage)
    return stage


def plain_gradient(config: RetrievalConfig, device) -> Gradient:
    """The gradient of the first global batch in plain torch, by one process, clipped."""
    stage = fresh_stage(config)
    stage.towers.to(device)
    with closing(batches(config, 0, 1, device)) as stream:
        views = stage.augmented(next(stream), slice(0, config.batch.global_batch), config.run.seed)
    PLAIN_LOSSES[config.loss.name](*stage.towers(*views)).backward()
    torch.nn.utils.clip_grad_norm_(stage.towers.parameters(), config.optimizer.gradient_clipping)
    return {name: p.grad for name, p in stage.towers.named_parameters()}


def farthest(found: Gradient, expected: Gradient) -> float:
    """The largest relative difference of a gradient, parameter by parameter."""
    assert found.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    return max(
        float((found[name] - gradient).abs().max())
        # a gradient that is zero but for rounding is compared with the others
        / max(float(gradient.abs().max()), 1e-3 * scale)
        for name, gradient in expected.items()
    )


def run(config: RetrievalConfig, settings, chunks: int, expected: Gradient | None, device) -> dict:
    """Loss of the global batch at each step, and how far the first gradient is from `expected`."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    stage = fresh_stage(config)
    engine = open_engines(config, settings, stage, world_size)[ENGINE]
    if expected is not None:
        engine = Watched(engine, config.optimizer.betas[0])
    losses = []
    for step, batch in enumerate(batches(config, rank, world_size, device)):
        context = StepContext(step, config.run.seed, rank, world_size, chunks, device, 1.0)
        share = stage.step({ENGINE: engine}, batch, context)["loss"]
        dist.all_reduce(share)
        losses.append(float(share))
    error = 0.0 if expected is None else farthest(engine.first, expected)
    return {"losses": losses, "gradient_error": error}


def main() -> None:
    """Go through all cases."""
    arguments = [a for a in sys.argv[1:] if not a.startswith("--local_rank")]
    yaml, folder, names, chunks, out = arguments
    device = init_distributed(120.0)
    torch.set_num_threads(1)
    cases = {}
    for loss in names.split(","):
        config = configuration.load(yaml, [f"loss.name={loss}"])
        assert isinstance(config, RetrievalConfig)
        expected = plain_gradient(config, device) if config.precision == "fp32" else None
        # DeepSpeed scales no loss of fp16 on ZeRO 0.
        for zero in range(1, 4) if config.precision == "fp16" else range(4):
            settings = configuration.load_deepspeed(Path(folder) / f"zero{zero}.json")
            for count in map(int, chunks.split(",")):
                found = run(config, settings, count, expected, device)
                cases[f"{loss}-zero{zero}-chunks{count}"] = found
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(cases))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
