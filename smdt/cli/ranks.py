"""Jobs on ranks of this machine, as commands start them."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from data_shards.base.errors import Stopped
from data_shards.build.dataset import stop_signals
from launcher.run.command import LocalLaunch, check_gpus, devices_of
from launcher.run.local import run_ranks

if TYPE_CHECKING:
    from smdt.inference.embed import EmbedJob
    from smdt.inference.rank import AnnotateJob


@contextmanager
def kept_when_stopped(out: Path | str) -> Iterator[None]:
    """Turn an interrupt of the block into the sentence that its finished shards stay in `out`."""
    try:
        with stop_signals():
            yield
    except KeyboardInterrupt:
        raise Stopped(
            f"Stopped; finished shards stay in {out}: start the same command again to resume."
        ) from None


def run_job(
    name: str, job: "AnnotateJob | EmbedJob", ranks: int, check: Callable[[], None]
) -> None:
    """Do a job in this process, or on ranks of this machine.

    Args:
        name: of the job.
        job: what to do.
        ranks: processes; 1 is this one.
        check: checks the input once, before several ranks start.
    """
    from smdt.inference.rank import JOBS, MODULE, arguments

    if ranks == 1:
        _, on_rank = JOBS[name]
        on_rank(job, 0, 1)
        return
    plan = local_plan(MODULE, arguments(name, job), ranks)
    check()
    run_ranks(plan)


def local_plan(module: str, arguments: Sequence[str], ranks: int) -> LocalLaunch:
    """Return the launch plan of a module on this machine's present GPUs.

    Raises:
        InputError: there are GPUs, but fewer than ranks; or DeepSpeed is not installed.
    """
    import torch

    from smdt.training.deepspeed.settings import require_deepspeed
    from smdt.training.ranks.environment import free_port

    require_deepspeed()
    check_gpus(ranks, torch.cuda.device_count())
    has_gpu = torch.cuda.is_available()
    return LocalLaunch(
        module=module,
        arguments=arguments,
        devices=devices_of(ranks, has_gpu, os.environ.get("CUDA_VISIBLE_DEVICES")),
        port=free_port(),
        cores=len(os.sched_getaffinity(0)),
        has_gpu=has_gpu,
    )
