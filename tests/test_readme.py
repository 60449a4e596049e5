"""The README followed from top to bottom: every command, in its order, as a user types it.

`WALK` says of each command how the test runs it: which lengths and sizes are smaller here, and what
stands in for a store, other hosts, a Ray cluster and downloaded weights.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoConfig, AutoModelForSemanticSegmentation

from smdt.semantics.labels import CITYSCAPES
from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.run_folder import RunFolder
from tests.cluster.bed import TOOLS, bed
from tests.data_shards.two_nodes import ADDRESS, two_nodes
from tests.distributed.runs import ROOT, fast_precision
from tests.namespaces import Host, require_namespaces
from tests.raw_data import write_cvusa
from tests.store import environment

TRAIN, VAL = 200, 24
STORE = "s3://data/readme"
TINY_SEGFORMER = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 8, 16, 16],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 16,
}
TWO_STEPS = "'schedule.length=2 steps' 'evaluation.every=2 steps'"
SMALL = f"{TWO_STEPS} batch.global=2 'geometry.panorama_size=[32,128]'"
NARROW = "model.generator_width=4 model.discriminator_width=4"


@dataclass(frozen=True)
class Run:
    """How the test runs a command of the README.

    Attributes:
        smaller: pairs of what stands in the command and what the test types instead.
        added: what the test types after the command.
        on: `here`, the first of two `hosts`, or the head of a `ray` cluster.
        exit_code: that it has to end with.
    """

    smaller: Sequence[tuple[str, str]] = ()
    added: str = ""
    on: str = "here"
    exit_code: int = 0


@dataclass(frozen=True)
class CheckedElsewhere:
    """A command that another check runs."""

    where: str


CVUSA = "smdt train --config cvusa/retrieval --deepspeed_config zero2"
WALK: dict[str, Run | CheckedElsewhere] = {
    "apt-get install git make g++ python3-dev python3-venv": CheckedElsewhere(
        "tests/test_fresh_machine.py"
    ),
    "make demo": CheckedElsewhere("tests/smdt/cli/test_demo.py, with --quick"),
    "make test": CheckedElsewhere(".ci/run"),
    "smdt demo": CheckedElsewhere("tests/smdt/cli/test_demo.py, with --quick"),
    "smdt shards world --out data/world --train 2000 --val 400 --ground-size 64x256 "
    "--aerial-size 192": Run([("2000", "200"), ("400", "50")]),
    "smdt train --config world/photos --deepspeed_config zero2 --ranks 2 "
    '"schedule.length=24 epochs"': Run(
        [("24 epochs", "2 epochs")], added="batch.global=40 schedule.warmup_steps=2"
    ),
    "smdt evaluate runs/world-photos --shards data/world": Run(),
    "smdt report runs/world-photos": Run(),
    "smdt shards build cvusa --root /data/CVUSA --out data/cvusa": Run(),
    "smdt shards build folder --root /data/mine --out data/mine": Run(),
    "smdt shards verify data/cvusa": Run(),
    "smdt shards stats data/cvusa --sheet sheet.png": Run(),
    "smdt shards build cvusa --root /data/CVUSA --out data/cvusa --task auto": Run(
        [("data/cvusa", "data/array")]
    ),
    "smdt shards finalize data/cvusa": Run([("data/cvusa", "data/array")]),
    "smdt shards build cvusa --root /data/CVUSA --out data/cvusa --executor ray "
    "--address HEAD:6379": Run([("data/cvusa", "data/ray"), ("HEAD:6379", ADDRESS)], on="ray"),
    "smdt shards build cvusa --root /data/CVUSA --out s3://bucket/cvusa": Run(
        [("s3://bucket/cvusa", f"{STORE}/cvusa")]
    ),
    f'{CVUSA} --ranks 2 "schedule.length=20 steps" batch.global=4': Run(),
    f"{CVUSA} --ranks 2": Run(added="'schedule.length=2 epochs'"),
    "smdt segment --shards data/cvusa --out data/cvusa-seg --checkpoint segformer/": Run(),
    "smdt train --config cvusa/alignment --deepspeed_config zero2 data.shards=data/cvusa-seg": Run(
        added=f"{SMALL} {NARROW}"
    ),
    "smdt align --shards data/cvusa-seg --out data/cvusa-aligned "
    "--checkpoint runs/cvusa-alignment": Run(),
    "smdt train --config cvusa/retrieval data.shards=data/cvusa-aligned "
    "aerial=aligned run.out=runs/cvusa-aligned": Run(added=SMALL),
    r"printf 'node-0 slots=8\nnode-1 slots=8\n' > hosts": Run([("slots=8", "slots=1")]),
    "smdt launch check --hostfile hosts --config cvusa/retrieval": Run(on="hosts"),
    "smdt launch up --hostfile hosts --config cvusa/retrieval --deepspeed_config zero2": Run(
        added="'schedule.length=3 epochs'", on="hosts"
    ),
    "curl localhost:9400/metrics": Run(
        [("curl", "curl --silent --fail --retry-all-errors --retry 120 --retry-delay 1")]
    ),
    "tail -f runs/cvusa-retrieval/metrics.jsonl": Run([("tail", "timeout 2 tail")], exit_code=124),
    "smdt report runs/cvusa-retrieval": Run(),
    "smdt evaluate runs/cvusa-retrieval --shards data/cvusa --json recall.json --ranks 8": Run(
        [("--ranks 8", "--ranks 2")]
    ),
    "smdt evaluate runs/cvusa-retrieval --shards data/cvusa --fov 90 --unknown-heading": Run(),
    "smdt embed runs/cvusa-retrieval --shards data/cvusa --out gallery": Run(),
    "smdt locate photo.jpg --gallery gallery --fov 90 --geojson places.json": Run(),
    "smdt export runs/cvusa-retrieval --out model": Run(),
    "smdt locate demo/photo.png --gallery demo/gallery --fov 180": CheckedElsewhere(
        "tests/smdt/cli/test_demo.py, whose demo ends with it"
    ),
}
WITHOUT_ITS_LAST_LINE = f"{CVUSA} --ranks 2"
"""What the README says in words: the trial without its last line."""


def readme_commands() -> list[str]:
    """The commands of the README's code blocks, one a string, without comments."""
    blocks = re.findall(r"^```\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [" ".join(re.sub(r"\s+#.*", "", line).split()) for line in lines]
    trial = next(n for n, command in enumerate(commands) if command.endswith("batch.global=4"))
    commands.insert(trial + 1, WITHOUT_ITS_LAST_LINE)
    return [command for command in commands if command]


def test_the_walk_has_every_command_in_the_readmes_order():
    assert readme_commands() == list(WALK)


class ReadmeRunner:
    """Types commands in a folder."""

    def __init__(self, folder: Path, on: dict[str, Host]) -> None:
        self._folder = folder
        self._on = on
        self._environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            **{f"SLURM_ARRAY_TASK_{name}": "0" for name in ("ID", "MIN", "MAX")},
            "SLURM_ARRAY_TASK_COUNT": "1",
        }

    def start(self, command: str, on: str = "here") -> subprocess.Popen[str]:
        """Start a command line in a shell."""
        if "--config" in command:
            command = " ".join([command, *fast_precision()])
        line = ["bash", "-c", f"cd {self._folder} && {command}"]
        return subprocess.Popen(
            self._on[on].command(line, only_network=on == "ray") if on != "here" else line,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def type(self, command: str, how: Run) -> str:
        """Run a command of the README to its end; return what it printed."""
        for theirs, ours in how.smaller:
            assert theirs in command
            command = command.replace(theirs, ours)
        process = self.start(f"{command} {how.added}", how.on)
        output, _ = process.communicate(timeout=900)
        assert process.returncode == how.exit_code, f"{command}\n{output}"
        assert "Traceback" not in output, f"{command}\n{output}"
        return output


@pytest.fixture
def folder(tmp_path) -> Path:
    """Raw data, a segmenter of Hugging Face's form, and `smdt` on the path."""
    write_cvusa(tmp_path / "raw" / "CVUSA", TRAIN, VAL)
    mine = tmp_path / "raw" / "mine"
    shutil.copytree(tmp_path / "raw/CVUSA/bingmap/19", mine / "tiles")
    shutil.copytree(tmp_path / "raw/CVUSA/streetview/panos", mine / "photos")
    rows = [f"photos/{i:07d}.jpg,tiles/{i:07d}.jpg\n" for i in range(1, 9)]
    (mine / "train.csv").write_text("ground,aerial\n" + "".join(rows))
    names = dict(enumerate(CITYSCAPES))
    config = AutoConfig.for_model("segformer", id2label=names, **TINY_SEGFORMER)
    network = AutoModelForSemanticSegmentation.from_config(config)
    network.save_pretrained(tmp_path / "segformer")
    panorama = Image.open(mine / f"photos/{TRAIN + 1:07d}.jpg")
    panorama.crop((0, 0, panorama.width // 4, panorama.height)).save(tmp_path / "photo.jpg")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "smdt"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m smdt.cli "$@"\n')
    command.chmod(0o755)
    return tmp_path


@contextmanager
def training_on(walker: ReadmeRunner, folder: Path) -> Iterator[None]:
    """Keep a training going while it is watched."""
    training = walker.start(f"{WITHOUT_ITS_LAST_LINE} 'schedule.length=200 epochs'")
    try:
        yield
    finally:
        (folder / "runs/cvusa-retrieval/stop").touch()
        output, _ = training.communicate(timeout=300)
    assert training.returncode == 75, output


def tars(folder: Path) -> dict[str, bytes]:
    """The tars of a data set by their path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.tar")}


@pytest.mark.full
@pytest.mark.distributed
@pytest.mark.timeout(2400)
def test_the_readme_from_top_to_bottom(folder, tmp_path_factory, s3_proxy, monkeypatch):
    require_namespaces(*TOOLS, "curl")
    for name, value in environment(s3_proxy).items():
        monkeypatch.setenv(name, value)
    data = {"/data/CVUSA": folder / "raw" / "CVUSA", "/data/mine": folder / "raw" / "mine"}
    run = RunFolder(folder / "runs" / "cvusa-retrieval")
    printed = {}
    names = ("node-0", "node-1")
    with bed(tmp_path_factory.mktemp("hosts"), names) as cluster, two_nodes() as ray:
        walker = ReadmeRunner(folder, {"hosts": cluster.hosts[0], "ray": ray[0].host})
        for command, how in WALK.items():
            if isinstance(how, CheckedElsewhere):
                continue
            typed = command
            for theirs, ours in data.items():
                typed = typed.replace(theirs, str(ours))
            if command.startswith("curl"):
                with training_on(walker, folder):
                    printed[command] = walker.type(typed, how)
                    steps = _last_step(run)
                    while _last_step(run) < steps + 2:
                        time.sleep(0.2)
                continue
            printed[command] = walker.type(typed, how)
            if command == WITHOUT_ITS_LAST_LINE:
                assert run.read_state()["status"] == "done"

    assert tars(folder / "data/array") == tars(folder / "data/cvusa") == tars(folder / "data/ray")
    assert "smdt_steps_total" in printed["curl localhost:9400/metrics"]
    assert checkpoint.integrity_error(max(run.checkpoints.glob("step-*"))) == ""
    for made in ("sheet.png", "recall.json", "places.json", "model/weights.safetensors"):
        assert (folder / made).stat().st_size > 0
    for report in ("world-photos", "cvusa-retrieval"):
        assert (folder / "runs" / report / "report.html").exists()


def _last_step(run: RunFolder) -> int:
    return max((record["step"] for record in run.read_metrics()), default=0)
