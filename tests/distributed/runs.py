"""Looking after a run that a test has started."""

import atexit
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from launcher.run.command import devices_of, host_launcher
from smdt.training.ranks.environment import free_port

ROOT = Path(__file__).parent.parent.parent
DEEPSPEED_FILES = ROOT / "configs" / "deepspeed"

SEGMENTATION = {
    "stage": "segmentation",
    "model": {
        "settings": {
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [8, 8, 16, 16],
            "num_attention_heads": [1, 1, 2, 2],
            "decoder_hidden_size": 32,
        },
        "image_size": [32, 128],
    },
    "geometry": None,
    "optimizer": {"learning_rate": 0.003},
}
"""Sections of a small segmenter's run, for `write_config`."""

WITHOUT_DROPOUT = {
    **SEGMENTATION,
    "model": {
        **SEGMENTATION["model"],
        "settings": {
            **SEGMENTATION["model"]["settings"],
            "classifier_dropout_prob": 0.0,
            "drop_path_rate": 0.0,
        },
    },
}
"""The same without what is drawn for each rank."""


def fast_precision() -> list[str]:
    """Overrides that let a recipe train at this CPU's speed: one that emulates bf16 needs hours."""
    from smdt.training.ranks.cpu import emulates_bf16

    return ["precision=fp32"] if emulates_bf16() else []


def deepspeed(script: Path, ranks: int, *arguments: object, seconds: float = 600) -> None:
    """Run a script of ours on some ranks of this machine, to its end."""
    launcher = host_launcher(devices_of(ranks, has_gpu=False, visible=None), free_port())
    subprocess.run(
        [*launcher, script, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=seconds,
    )


def wait_for(condition: Callable[[], object], process: subprocess.Popen, seconds: float = 300):
    """Wait until `condition` is true while the run goes on; return what it returned."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
    return found


def ranks_of(config: Path) -> list[int]:
    """Process ids of the ranks that train with `config`."""
    # A rank's argv has its local rank; the launchers' have not.
    return [
        pid
        for pid, argv in processes_of(config).items()
        if any(argument.startswith(b"--local_rank") for argument in argv)
    ]


def processes_of(path: Path) -> dict[int, list[bytes]]:
    """Command lines of the processes that have `path` as an argument, by process id."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(path).encode() in argv:
            found[int(entry.name)] = argv
    return found


def kill_ranks(config: Path) -> None:
    """Kill -9 every rank of a run."""
    pids = ranks_of(config)
    assert pids
    kill(pids)


def kill(pids: Iterable[int]) -> None:
    """Kill -9 processes, those that are gone already excepted."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def files_of(root: Path) -> dict[str, bytes]:
    """What every file below `root` holds, by its path."""
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def join_ranks(rank: int, ranks: int, port: int) -> None:
    """Be one of so many processes on this machine that were spawned to be ranks."""
    import torch

    from smdt.training.deepspeed.engine import init_distributed

    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_SIZE": ranks}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    # Gloo's threads let go of the last collective's tensors a moment after it; once the
    # interpreter is ending, that aborts the process.
    atexit.register(time.sleep, 0.5)
    init_distributed(60.0)
