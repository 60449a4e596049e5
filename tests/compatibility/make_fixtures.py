"""Make what users have of a version: a data set, a gallery, and a run of every stage and ZeRO.

    git worktree add /tmp/smdt-VERSION VERSION
    cd /tmp/smdt-VERSION
    PYTHONPATH=$PWD python REPOSITORY/tests/compatibility/make_fixtures.py \\
        REPOSITORY/tests/compatibility/files-VERSION /tmp/fixtures

It starts the commands of the version that Python imports, with the DeepSpeed configurations of the
folder that it is started in, takes a quarter of an hour on two cores, and writes about 2 MB. A run
is copied while it goes on, right after its first checkpoint: that is what is left of one that is
killed. Beside it lie the weights that it ended with. What stands in the last folder already is not
made again.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

SAVED, END = 8, 15  # an epoch has 13 steps
OTHERS = ("logs", "targets", "lease", "stop", "report.html", "*.tmp")
"""What a run folder holds that a test doesn't need."""
COMMON: dict[str, Any] = {
    "data": {
        "shards": "shards",
        "decode_threads": 1,
        "read_threads": 1,
        "order": {"policy": "shuffle"},
    },
    "batch": {"global": 8},
    # Adam divides by the root of tiny gradients, which makes rounding grow; a larger epsilon not.
    "optimizer": {"learning_rate": 0.001, "epsilon": 1e-4},
    "schedule": {"length": f"{END} steps", "warmup_steps": 2},
    "checkpoint": {"every": f"{SAVED} steps"},
    "evaluation": {"every": f"{SAVED} steps", "batch": 8},
    "telemetry": {"metrics_port": 0},
    "precision": "fp32",
}
STAGES: dict[str, dict[str, Any]] = {
    "retrieval": {
        "geometry": {"panorama_size": [32, 64]},
        "model": {
            "stem": {"kind": "conv", "width": 4, "groups": 4},
            **{"width": 16, "layers": 1, "heads": 2, "hidden": 32, "dropout": 0.1},
        },
    },
    "alignment": {
        "geometry": {"panorama_size": [32, 64]},
        "model": {"generator_width": 1, "discriminator_width": 2, "feedback_loops": 2},
    },
    "segmentation": {
        "model": {
            "image_size": [32, 64],
            "settings": {
                "depths": [1, 1, 1, 1],
                "hidden_sizes": [4, 4, 8, 8],
                "num_attention_heads": [1, 1, 2, 2],
                "decoder_hidden_size": 8,
            },
        },
    },
}
RANKS = 2
SIZES = ("--ground-size", "32x64", "--aerial-size", "32", "--difficulty", "easy")
WORLD = ("world", "--train", "104", "--val", "8", *SIZES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of tests/compatibility, files-VERSION")
    parser.add_argument("work", type=Path, help="folder where the commands are started")
    given = parser.parse_args()
    out, work = given.out.absolute(), given.work.absolute()
    for folder in (out, work / "whole"):
        folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree("configs/deepspeed", work / "deepspeed", dirs_exist_ok=True)
    if not (out / "shards.tar.xz").exists():
        make_shards(work)
        pack(work, out / "shards.tar.xz", ["shards"])
    for stage in STAGES:
        names = [f"{stage}-zero{zero}" for zero in range(4)]
        for zero in (2, 0, 1, 3):
            if not (work / f"{names[zero]}.safetensors").exists():
                make_run(work, stage, zero)
            if zero == 2 and not (out / f"{stage}.json").exists():
                if stage == "retrieval":
                    make_gallery(work, out)
                smdt(
                    work,
                    "evaluate",
                    names[2],
                    "--shards",
                    "shards",
                    "--json",
                    out / f"{stage}.json",
                )
        pack(work, out / f"{stage}.tar.xz", [*names, *(f"{name}.safetensors" for name in names)])


def make_shards(work: Path) -> None:
    """A small world: 104 training pairs in 2 shards, 8 pairs of an unseen city."""
    smdt(work, "shards", *WORLD, "--out", "shards")


def make_run(work: Path, stage: str, zero: int) -> None:
    """A run as it is after its first checkpoint, and the weights that it ends with."""
    name = f"{stage}-zero{zero}"
    whole = work / "whole" / name
    for begun in (whole, work / name):
        shutil.rmtree(begun, ignore_errors=True)
    run = {"name": name, "out": str(whole.relative_to(work)), "seed": 3, "timeout_seconds": 300}
    config = {"stage": stage, "run": run, **COMMON, **STAGES[stage]}
    (work / f"{name}.yaml").write_text(json.dumps(config))  # which is YAML, too
    ranks = start_ranks(
        work, "--config", f"{name}.yaml", "--deepspeed_config", f"deepspeed/zero{zero}.json"
    )
    saved = whole / "checkpoints" / f"step-{SAVED:08d}"
    while not saved.exists():
        if any(rank.poll() is not None for rank in ranks):
            raise SystemExit(f"{name} ended before it saved")
        time.sleep(0.01)
    later = f"step-{END:08d}"
    shutil.copytree(whole, work / name, ignore=shutil.ignore_patterns(*OTHERS, f"{later}*"))
    for rank in ranks:
        rank.wait()
    # A rank may abort when all is done: gloo's threads.
    end = whole / "checkpoints" / later / "weights.safetensors"
    if json.loads((whole / "state.json").read_text())["status"] != "done":
        raise SystemExit(f"{name} has not come to its end")
    shutil.copyfile(end, work / f"{name}.safetensors")


def make_gallery(work: Path, out: Path) -> None:
    """The unseen city as a gallery, a photo of it, and where the photo is found."""
    smdt(work, "embed", "retrieval-zero2", "--shards", "shards", "--out", "gallery")
    pack(work, out / "gallery.tar.xz", ["gallery"])
    with tarfile.open(next((work / "shards" / "val").glob("*.tar"))) as shard:
        photo = next(each for each in shard if "ground" in each.name)
        (out / "photo.jpg").write_bytes(shard.extractfile(photo).read())  # type: ignore[union-attr]
    where = ("--gallery", "gallery", "--heading", "0")
    smdt(work, "locate", out / "photo.jpg", *where, "--json", out / "located.json")


def smdt(work: Path, *arguments: object) -> None:
    """Run a command of the version to its end."""
    print("smdt", *arguments, flush=True)
    command = [sys.executable, "-m", "smdt.cli", *map(str, arguments)]
    subprocess.run(command, cwd=work, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)


def start_ranks(work: Path, *arguments: str) -> list[subprocess.Popen[bytes]]:
    """Start the ranks of a run, as `smdt train` does with more processes between."""
    print("python -m smdt.train", *arguments, flush=True)
    with socket.socket() as trial:
        trial.bind(("", 0))
        port = trial.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(RANKS)}
    where |= {"LOCAL_SIZE": str(RANKS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "smdt.train", *arguments]
    return [
        subprocess.Popen(
            command,
            cwd=work,
            env={**os.environ, **where, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(RANKS)
    ]


def pack(work: Path, archive: Path, names: list[str]) -> None:
    """Compress files and folders of `work`, without what tells of this machine."""

    def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(archive, "w:xz", preset=9) as packed:
        for name in names:
            packed.add(work / name, name, filter=anonymous)


if __name__ == "__main__":
    main()
