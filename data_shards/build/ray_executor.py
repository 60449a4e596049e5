"""The tasks of a job on a Ray cluster: one remote task each, retried when a node is lost."""

import logging
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from data_shards.base.errors import InputError, ShardError, UserError
from data_shards.base.packages import require_package
from data_shards.build.executor import REFRESH_SECONDS, AdvanceCallback

Task = TypeVar("Task")
Result = TypeVar("Result")

ANSWER_SECONDS = 20
"""Ray itself tries for minutes to reach a cluster that is not there."""

RETRIES = 5
"""Retries of a task whose node or process is lost; limited, since an image may crash its process
each time."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RayExecutor:
    """Runs tasks on the nodes of a running Ray cluster, each on one of its CPUs.

    Args:
        address: HOST:PORT of its head; None is the cluster that this machine is a node of.

    Raises:
        InputError: ray is not installed, or no cluster answers.
    """

    address: str | None = None

    def __post_init__(self) -> None:
        require_package("ray", "Ray, which --executor ray needs,", "smdt[ray]")
        _check_answers(self.address)

    def __call__(
        self,
        function: Callable[[Task, AdvanceCallback], Result],
        tasks: Sequence[Task],
        workers: int | None,
        advance: AdvanceCallback,
        preload: Sequence[str] = (),  # noqa: ARG002  (Ray keeps its workers, and what they imported)
    ) -> Generator[Result, None, None]:
        """Run `function(task, advance)` for every task, `workers` at once at most.

        Raises:
            ShardError: a task was lost more often than it is retried.
        """
        if not tasks:
            return
        with _connected(self.address):
            yield from _run(function, tasks, workers or len(tasks), advance)


def _run(
    function: Callable[[Task, AdvanceCallback], Result],
    tasks: Sequence[Task],
    at_once: int,
    advance: AdvanceCallback,
) -> Generator[Result, None, None]:
    import ray

    shipped = ray.put(function)
    work: Any = ray.remote(num_cpus=1, max_retries=RETRIES)(_work)
    queue = iter(tasks)
    folder = str(Path.cwd())
    running = [work.remote(shipped, task, folder) for task in islice(queue, at_once)]
    while running:
        done, running = ray.wait(running, num_returns=len(running), timeout=REFRESH_SECONDS)
        advance(0)  # the caller may want to stop
        running += [work.remote(shipped, task, folder) for task in islice(queue, len(done))]
        for reference in done:
            try:
                result, samples, node = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from None
                raise
            except ray.exceptions.RayError as error:
                raise ShardError(
                    f"Ray gave up on a shard ({str(error).splitlines()[0].rstrip('.')}): "
                    "start the same command again; what is finished stays."
                ) from None
            _log.debug("a task of %d samples ended on node %s", samples, node)
            advance(samples)
            yield result


def _work(
    function: Callable[[Task, AdvanceCallback], Result], task: Task, folder: str
) -> tuple[Result, int, str]:
    """On a node: the result, the number of samples, the node's id.

    Ray starts its workers in a folder of its own; relative paths are meant from the driver's.
    """
    import ray

    try:
        os.chdir(folder)
    except OSError as error:
        raise InputError(
            f"{folder} is not on the Ray node {platform.node()} ({error.strerror}): start the "
            "build in a folder that all nodes share."
        ) from None
    advanced: list[int] = []
    result = function(task, advanced.append)
    return result, sum(advanced), ray.get_runtime_context().get_node_id()


def _check_answers(address: str | None) -> None:
    where = [] if address is None else ["--address", address]
    try:
        answered = subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", "status", *where],
            timeout=ANSWER_SECONDS,
            check=False,
            capture_output=True,
        )
    except subprocess.TimeoutExpired:
        answered = None
    if answered is not None and answered.returncode == 0:
        return
    if address is None and "RAY_ADDRESS" not in os.environ:
        raise InputError(
            "No Ray cluster runs on this machine: give the --address HOST:PORT of its head, "
            "or start one with `ray start`."
        )
    raise InputError(
        f"No Ray cluster answers at {address or os.environ['RAY_ADDRESS']}: "
        "give the --address HOST:PORT of its head, on a machine that is one of its nodes."
    )


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """This process is the driver of a Ray job; at the end, its tasks end with it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    # Ray installs its own handler of SIGTERM, which exits and saves nothing.
    ours = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError) as error:
        raise InputError(f"Ray refuses this process: {str(error).splitlines()[0]}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ours)
    try:
        yield
    finally:
        ray.shutdown()
