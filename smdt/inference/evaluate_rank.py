"""`smdt evaluate` on several ranks: each one is `deepspeed --module smdt.inference.evaluate_rank`.

A folder holds what to do, and at the end what rank 0 found.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch.distributed as dist
import typer
from pydantic import BaseModel, ConfigDict, TypeAdapter

from data_shards.errors import UserError, run
from smdt.data.pipeline import require_dali
from smdt.data.split import Split
from smdt.stages.trained import AS_TRAINED, Asked, evaluate_trained, load_config
from smdt.stages.weights import find_weights
from smdt.training.engine import init_distributed
from smdt.training.place import find_place
from smdt.training.processor import keep_freed_memory, share_cores
from smdt.training.stage import Evaluation
from smdt.training.stopping import die_with_parent

JOB, FOUND = "job.json", "found.json"
PATIENCE_SECONDS = 1800.0
"""How long a rank waits for a slower one."""

_EVALUATION = TypeAdapter(Evaluation)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class EvaluateJob(BaseModel):
    """What to evaluate, on what, and by which rules."""

    model_config = ConfigDict(frozen=True)

    trained: Path
    """Run or checkpoint."""
    shards: str
    """Folder or URL of the data set."""
    split: str
    max_missing: int = 0
    """How many unreadable samples may be left out."""
    panogan_compat: bool = False
    """Whether scores of images are the published ones."""
    alignment: Path | None = None
    """Run or checkpoint that makes aligned images; None: where the run had it."""
    asked: Asked = AS_TRAINED

    def evaluate(self) -> Evaluation:
        """Evaluate, together with the other ranks where there are any.

        Raises:
            UserError: as `evaluate_trained`.
        """
        return evaluate_trained(
            self.trained,
            self.shards,
            self.split,
            self.max_missing,
            self.panogan_compat,
            self.alignment,
            self.asked,
        )


def evaluate_on_ranks(job: EvaluateJob, start: Callable[[Sequence[str]], None]) -> Evaluation:
    """Have ranks evaluate; return what they found together.

    Args:
        job: what to do.
        start: starts this module on the ranks, with arguments, and waits for their end.

    Raises:
        InputError: there is no such checkpoint or split, or DALI is not installed.
        UserError: a rank failed.
    """
    require_dali()
    config = job.asked.apply(load_config(find_weights(job.trained), job.alignment))
    views = ("ground", "seg") if config.stage == "segmentation" else ("aerial",)
    Split.open(job.shards, job.split).require_shapes(views)
    with TemporaryDirectory(prefix="smdt-evaluate-") as folder:
        (Path(folder) / JOB).write_text(job.model_dump_json())
        start([folder])
        found = Path(folder) / FOUND
        if not found.exists():
            raise UserError(f"{job.trained} was not evaluated: its ranks say why, above.")
        return _EVALUATION.validate_json(found.read_bytes())


@app.command()
def main_rank(
    folder: Annotated[Path, typer.Argument(help="Holds job.json; found.json is written to it.")],
    local_rank: Annotated[int | None, typer.Option("--local_rank", hidden=True)] = None,
) -> None:
    """Do this rank's part; `deepspeed` starts one such process for each rank."""
    del local_rank  # DeepSpeed's launcher says it in the environment as well
    die_with_parent()
    rank, _ = find_place()
    share_cores()
    keep_freed_memory()
    init_distributed(PATIENCE_SECONDS)
    found = EvaluateJob.model_validate_json((folder / JOB).read_text()).evaluate()
    if rank == 0:
        (folder / FOUND).write_bytes(_EVALUATION.dump_json(found))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Run `smdt.inference.evaluate_rank` as a program."""
    run(app)


if __name__ == "__main__":
    main()
