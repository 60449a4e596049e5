"""A run of a stage without DeepSpeed, and whether all that is to be done with one can be."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from smdt.data.loader import Batch
from smdt.inference.export import export_model
from smdt.stages.base_config import Config
from smdt.stages.registry import make_stage
from smdt.stages.trained import load_stage
from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.checkpoint import Progress
from smdt.training.loop.stage import Stage, StepContext
from tests.plain_engine import PlainEngine

Outputs = Callable[[Stage, Batch], Sequence[torch.Tensor]]


class PlainRun:
    """A stage with plain engines; its steps take a whole batch."""

    def __init__(self, config: Config, seed: int) -> None:
        torch.manual_seed(seed)
        self.config = config
        self.stage = make_stage(config)
        self.engines = {
            name: PlainEngine(module, torch.optim.SGD(module.parameters(), 0.01, momentum=0.9))
            for name, module in self.stage.modules().items()
        }

    def step(self, number: int, batch: Batch) -> None:
        context = StepContext(number, 0, 0, 1, 1, torch.device("cpu"))
        self.stage.step(self.engines, batch, context)

    def save(self, checkpoints: Path) -> Path:
        progress = Progress(1, 2, 1, 0, checkpoint.DataState("", 0, 0, 0))
        records = {checkpoint.CONFIG: self.config.to_yaml()}
        checkpoint.write(checkpoints, self.engines, progress, records)
        checkpoint.publish_step(checkpoints, 1)
        return checkpoint.folder_of(checkpoints, 1)

    def weights(self) -> dict[str, torch.Tensor]:
        return {
            f"{name}.{key}": tensor
            for name, engine in self.engines.items()
            for key, tensor in engine.full_weights().items()
        }


def check_round_trip(run: PlainRun, batches: Sequence[Batch], out: Path, outputs: Outputs) -> None:
    """Make a step, save, open, export and resume; in a process group of this process.

    Args:
        run: that has made no step.
        batches: two.
        out: a folder.
        outputs: what a stage makes of a batch.
    """
    run.step(0, batches[0])
    folder = run.save(out / "checkpoints")
    with torch.no_grad():
        seen = outputs(run.stage, batches[1])
        _, opened = load_stage(folder)
        again = outputs(opened, batches[1])
    assert all(each.isfinite().all() for each in seen)
    assert all(map(torch.equal, again, seen))

    card = export_model(folder, out / "exported")
    saved, copy = (load_file(path / checkpoint.WEIGHTS) for path in (folder, card.parent))
    assert saved.keys() == copy.keys()
    assert set(saved) == {
        f"{name}.{key}"
        for name, module in run.stage.modules().items()
        for key in module.state_dict()
    }

    resumed = PlainRun(run.config, seed=9)
    for engine in resumed.engines.values():
        engine.load(folder)
    for each in (run, resumed):
        each.step(1, batches[1])
    whole, parts = run.weights(), resumed.weights()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
