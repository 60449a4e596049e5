"""Makes dashboard-*.png and report.png: real runs and a shard job, a real Prometheus, Chromium.

python -m docs.images.dashboards

A retrieval run of two ranks, of which the second is held up for the last half minute; an alignment
run; a shard job that rejects a row in ten; the endpoint of a launcher. All durations of the rules
are 60 times shorter than in `configs/monitoring/rules.yml`.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from PIL import Image

from docs.images.dashboard_page import dashboard_page, height_of
from launcher.metrics import LauncherMetrics
from monitoring.files import DASHBOARDS, FOLDER
from monitoring.times import duration
from smdt.report.page import write_report
from smdt.telemetry.exporter import TelemetryConfig
from tests.distributed.runs import ROOT, kill, processes_of, ranks_of
from tests.monitoring.raw_rows import write_rows
from tests.monitoring.server import Prometheus
from tests.monitoring.slow_rank import rank_of, slowed

HERE = Path(__file__).parent
WORLD = ("--train", "400", "--val", "100", "--ground-size", "64x256", "--aerial-size", "192")
ALIGNMENT = ("batch.global=2", "model.generator_width=4", "model.discriminator_width=4")
HEALTHY_SECONDS, HELD_UP_SECONDS = 40.0, 25.0
COLOURS = 64


@contextmanager
def running(*words: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command while the block runs."""
    command = [sys.executable, "-m", *map(str, words)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextmanager
def training(stage: str, ranks: int, folder: Path, *overrides: str) -> Iterator[Path]:
    """Run a training while the block runs; yields its configuration."""
    config = folder / f"{stage}.yaml"
    config.write_text((ROOT / "configs" / "world" / f"{stage}.yaml").read_text())
    settings = [f"data.shards={folder / 'world'}", f"run.out={folder / stage}", *overrides]
    settings += [f"telemetry.metrics_targets={folder / 'prometheus' / 'targets'}"]
    settings += ["telemetry.metrics_port=0", "telemetry.device_tflops=0.05"]
    words = ["smdt.cli", "train", "--config", config, "--ranks", ranks, "--deepspeed_config"]
    with running(*words, ROOT / "configs" / "deepspeed" / "zero2.json", *settings):
        try:
            yield config
        finally:
            kill(processes_of(config))


def screenshot(page: Path, out: Path, width: int, height: int, profile: Path) -> None:
    """Take a picture of a page, in few colours."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    flags += [f"--user-data-dir={profile}", f"--window-size={width},{height}"]
    shot = profile.with_name("shot.png")
    command = ["chromium", *flags, f"--screenshot={shot}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    Image.open(shot).convert("RGB").quantize(COLOURS).save(out, optimize=True)


def main() -> None:
    """Make the pictures."""
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        make = [sys.executable, "-m", "smdt.cli", "shards", "world", "--out", folder / "world"]
        subprocess.run([*make, *WORLD], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        prometheus = Prometheus(folder / "prometheus")
        stack.callback(prometheus.close)
        launcher = LauncherMetrics("world-retrieval")
        launcher.set_hosts({"used": 1})
        endpoint = TelemetryConfig(metrics_port=0).serve(
            launcher.registry,
            launcher.labels,
            entry="launcher",
            run_targets=prometheus.targets,
            port_offset=0,
        )
        stack.enter_context(endpoint)
        often = ("evaluation.every=10 steps", "checkpoint.every=10 steps")
        lasting = ("schedule.length=100000 steps", "batch.global=24", *often)
        config = stack.enter_context(training("retrieval", 2, folder, *lasting))
        align = (*ALIGNMENT, "schedule.length=100000 steps", "evaluation.every=40 steps")
        stack.enter_context(training("alignment", 1, folder, *align))
        prometheus.wait_until(
            lambda: (
                len(prometheus.query('smdt_recall{k="1"}')) == 2
                and prometheus.query("smdt_image_quality")
            ),
            "both runs have evaluated themselves",
            240,
        )
        write_rows(folder / "raw", 20_000)
        build = ["data_shards", "build", "folder", "--root", folder / "raw"]
        build += ["--out", folder / "cvusa", "--metrics-targets", prometheus.targets]
        stack.enter_context(running(*build, "--samples-per-shard=10", "--workers=1"))
        time.sleep(HEALTHY_SECONDS)
        ranks = {rank_of(pid): pid for pid in ranks_of(config)}
        with slowed(ranks["1"]):
            time.sleep(HELD_UP_SECONDS)
            take_pictures(prometheus, folder)
        page = write_report(folder / "retrieval")
        screenshot(page, HERE / "report.png", 1100, 2600, folder / "profile")


def take_pictures(prometheus: Prometheus, folder: Path) -> None:
    """Ask Prometheus what the dashboards ask, then take a picture of each."""
    variables = {
        "run": "world-retrieval",
        "stage": "retrieval",
        "set": "cvusa",
        "__rate_interval": duration(prometheus.times.rate),
    }
    dashboards = sorted((FOLDER / DASHBOARDS).glob("*.json"))
    pages = {path: dashboard_page(path, prometheus, variables) for path in dashboards}
    for path, text in pages.items():
        page = folder / f"{path.stem}.html"
        page.write_text(text)
        out = HERE / f"dashboard-{path.stem}.png"
        screenshot(page, out, 1290, height_of(path), folder / "profile")


if __name__ == "__main__":
    main()
