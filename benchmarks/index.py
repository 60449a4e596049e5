"""A large split: time to the first batch, and memory of each rank.

python -m benchmarks.index [--samples N] [--ranks R] [--json FILE]

Makes the merged index of a split of N pairs (its tars are empty files of the right size), and then
starts R processes that open it at once as the ranks of a node do: the loader, the order of an
epoch, the first global batch. *Mapped* is a rank's share of the pages of index and neighbour
table: a page that R processes use counts as 1/R in each.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Annotated

import numpy as np
import pyarrow as pa
import typer
from rich.console import Console
from rich.table import Table

from data_shards.format import layout
from data_shards.format.index import ABSENT, MERGED_SCHEMA
from data_shards.format.manifest import Manifest, ShardEntry, SplitEntry, save
from data_shards.format.plan import BuildOptions
from smdt.data import neighbours

PER_SHARD = 10_000
PART_BYTES = 50_000
GLOBAL_BATCH = 128
NEIGHBOURS = 64


def make_split(root: Path, samples: int) -> None:
    """Write a data set of one split with an index of `samples` rows."""
    rows = np.arange(samples)
    row_in_shard = rows % PER_SHARD
    columns: dict[str, object] = {
        "key": [f"train-{row:09d}" for row in rows],
        "source_id": [f"{row:09d}" for row in rows],
        "shard": (rows // PER_SHARD).astype(np.int32),
        "place": rows,
        "lat": rows / samples * 100 - 50,
        "lon": rows % 3000 / 10 - 150,
    }
    for number, part in enumerate(("ground", "aerial", "meta")):
        columns[f"{part}_offset"] = (3 * row_in_shard + number) * PART_BYTES
        columns[f"{part}_size"] = np.full(samples, PART_BYTES)
    for field in MERGED_SCHEMA:
        if field.name not in columns:
            absent = ABSENT if field.name.endswith(("_offset", "positive")) else 0
            columns[field.name] = np.full(samples, absent, dtype=field.type.to_pandas_dtype())
    arrays = [pa.array(columns[field.name], field.type) for field in MERGED_SCHEMA]
    table = layout.table_path(root, "train")
    table.parent.mkdir(parents=True)
    with pa.ipc.new_file(str(table), MERGED_SCHEMA) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=MERGED_SCHEMA))
    shards = []
    for shard in range(-(-samples // PER_SHARD)):
        count = min(PER_SHARD, samples - shard * PER_SHARD)
        size = 3 * count * PART_BYTES
        tar = os.open(str(layout.tar_path(root, "train", shard)), os.O_CREAT | os.O_WRONLY)
        os.truncate(tar, size)
        shards.append(
            ShardEntry(shard=shard, samples=count, bytes=size, sha256="", index_sha256="")
        )
    save(root, _manifest(samples, shards))


def _manifest(samples: int, shards: list[ShardEntry]) -> Manifest:
    split = SplitEntry(
        kind="pairs",
        rows=samples,
        samples=samples,
        bytes=sum(shard.bytes for shard in shards),
        rejected={},
        views={},
        table_sha256="",
        shards=shards,
    )
    return Manifest(
        name="large",
        seed=0,
        source={},
        options=BuildOptions(),
        encoder=None,
        splits={"train": split},
    )


def open_as_rank(root: Path, policy: str, sha256: str, rank: int, ranks: int) -> dict[str, float]:
    """Do what a rank does before its first read; seconds and MiB."""
    import torch

    from smdt.data.loader import DataConfig, TrainLoader
    from smdt.data.neighbours import NeighbourTable
    from smdt.data.order import OrderConfig, stream_order
    from smdt.data.split import Split
    from smdt.telemetry.metrics import TrainingMetrics

    order = OrderConfig.model_validate({"policy": policy})
    before = _private_mib()
    start = perf_counter()
    split = Split.open(root, "train")
    loader = TrainLoader(
        split,
        DataConfig(shards=str(root), order=order),
        views=("ground", "aerial"),
        global_batch=GLOBAL_BATCH * ranks,
        seed=0,
        rank=rank,
        world_size=ranks,
        device=torch.device("cpu"),
        quarantine=root / "quarantine.jsonl",
        metrics=TrainingMetrics("index", "benchmark", rank),
    )
    opened = perf_counter()
    table = NeighbourTable.load(root, sha256) if sha256 else None
    near = None if table is None else table.samples
    # Two epochs, since the order of the next one is worked out while this one is used.
    size = GLOBAL_BATCH * ranks
    stream = stream_order(order, loader.start, 2, split.places, size, near)
    next(stream)
    ordered = perf_counter()
    _meet()  # every rank is in this state when memory is counted
    found = {
        "open_seconds": opened - start,
        "order_seconds": ordered - opened,
        "private_mib": _private_mib() - before,
        "mapped_mib": _mapped_mib(root),
    }
    _meet()
    return found


def _meet() -> None:
    """Wait for the other ranks."""
    print("here", flush=True)
    sys.stdin.readline()


def _private_mib() -> float:
    """Memory of this process alone."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) / 1024


def _mapped_mib(root: Path) -> float:
    """This process's share of the pages of files below `root`."""
    maps = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.M)
    ours = [entry for entry in maps if f"{root}/" in entry]
    return sum(int(re.findall(r"^Pss:\s+(\d+)", entry, re.M)[0]) for entry in ours) / 1024


def make_table(root: Path, samples: int) -> str:
    """Write a neighbour table; its hash."""
    near = np.arange(1, NEIGHBOURS + 1, dtype=np.int32)
    table = (np.arange(samples, dtype=np.int32)[:, None] + near) % samples
    return neighbours.save(root, [table], table.shape)


def measure(root: Path, policy: str, sha256: str, ranks: int) -> list[dict[str, float]]:
    """Start all ranks at once; what each of them measured."""
    command = [sys.executable, "-m", "benchmarks.index", "rank", str(root), policy, sha256]
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen([*command, str(rank), str(ranks)], stdin=pipe, stdout=pipe, text=True)
        for rank in range(ranks)
    ]
    for _ in ("ready", "counted"):
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "here\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
    answers = [process.communicate()[0] for process in processes]
    return [json.loads(answer) for answer in answers]


def main(
    samples: Annotated[int, typer.Option(help="Pairs of the split.")] = 10_000_000,
    ranks: Annotated[int, typer.Option(help="Processes that open it at once.")] = 2,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Print the table of all policies."""
    table = Table("policy", "ranks", title=f"{samples:,} samples")
    for name in ("open, s", "order of an epoch, s", "private, MiB", "mapped, MiB"):
        table.add_column(name, justify="right")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        make_split(root, samples)
        index_mib = layout.table_path(root, "train").stat().st_size / 2**20
        tables = {"shuffle": "", "hard": make_table(root, samples)}
        for policy, sha256 in tables.items():
            for count in sorted({1, ranks}):
                found = measure(root, policy, sha256, count)
                worst = {name: max(rank[name] for rank in found) for name in found[0]}
                results[f"{policy}, {count} ranks"] = worst
                table.add_row(
                    policy,
                    str(count),
                    *(f"{value:,.2f}" for value in list(worst.values())[:2]),
                    *(f"{value:,.0f}" for value in list(worst.values())[2:]),
                )
    Console().print(table, f"index file {index_mib:,.0f} MiB, load {os.getloadavg()[0]:.1f}")
    if json_file is not None:
        json_file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        root, policy, sha256, rank, ranks = sys.argv[2:]
        print(json.dumps(open_as_rank(Path(root), policy, sha256, int(rank), int(ranks))))
    else:
        typer.run(main)
