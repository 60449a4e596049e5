"""A build as a command runs it: who does the work, what is shown and served, what remains."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_shards.base.exporter import LOOPBACK, Endpoint, Exporter
from data_shards.base.names import file_name
from data_shards.build.dataset import build_share, finish, stop_signals
from data_shards.build.executor import Executor, run_tasks
from data_shards.build.job_array import WHOLE, ArrayTask
from data_shards.build.metrics import ShardMetrics
from data_shards.build.progress import BuildCallback, RunTotals
from data_shards.build.ray_executor import RayExecutor
from data_shards.console import BuildProgressBar, show_build, show_left, show_run, write_json
from data_shards.format.plan import BuildOptions
from data_shards.format.sample import JSON
from data_shards.sources.source import Source


@dataclass(frozen=True, slots=True)
class BuildJob:
    """Execution options of a build; none of them changes the shards.

    Args:
        workers: shards written at once; None is as many as there are cores.
        max_rejected: more rejected samples than this are an error; None: no limit.
        on_ray: on a Ray cluster instead of this machine alone.
        ray_address: HOST:PORT of its head; None is the cluster that this machine is a node of.
        task: of a job array; None builds everything and finalizes it.
        metrics_targets: folder of the discovery entry; None serves no metrics.
        metrics: where they are served.
    """

    workers: int | None = None
    max_rejected: int | None = None
    on_ray: bool = False
    ray_address: str | None = None
    task: ArrayTask | None = None
    metrics_targets: Path | None = None
    metrics: Endpoint = LOOPBACK

    def run(self, source: Source, out: str, options: BuildOptions, json_file: Path | None) -> None:
        """Build, show the tables and write them as JSON."""
        executor: Executor = RayExecutor(self.ray_address) if self.on_ray else run_tasks
        tally = RunTotals()
        with (
            stop_signals(),
            self._metrics(out) as metrics,
            BuildProgressBar(f"build {source.name}") as bar,
        ):
            left = build_share(
                source,
                out,
                options,
                self.task or WHOLE,
                workers=self.workers,
                max_rejected=self.max_rejected,
                executor=executor,
                watchers=(bar, tally, metrics),
            )
            manifest = finish(out) if self.task is None else None
        figures = tally.figures()
        shown: dict[str, JSON] = {"task": str(self.task), "left": left}
        if manifest is not None:
            shown = manifest.model_dump(mode="json")
            show_build(manifest, out)
        show_run(figures)
        if manifest is None:
            show_left(str(self.task), left, out)
        write_json(json_file, shown | {"run": figures})

    @contextmanager
    def _metrics(self, out: str) -> Iterator[BuildCallback]:
        """The job's metrics, served while the block runs, or metrics that are discarded."""
        if self.metrics_targets is None:
            yield BuildCallback()
            return
        run, rank = Path(out).resolve().name, self.task.index if self.task else 0
        metrics = ShardMetrics(run, rank)
        target = self.metrics_targets / f"{file_name(f'{run}-shards-{rank:05d}')}.json"
        with Exporter(metrics.registry, self.metrics, target, metrics.labels):
            yield metrics
