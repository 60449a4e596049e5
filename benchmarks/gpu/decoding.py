"""How many images a second DALI decodes, on the CPU and on the GPU."""

import os
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from time import perf_counter

import torch

from smdt.data.pipeline import Decoder, Device
from smdt.data.reader import Reader
from smdt.data.split import Split
from smdt.telemetry.metrics import TrainingMetrics

BATCH = 32
SECONDS = 5.0


def encoded_images(shards: Path, view: str) -> list[bytes]:
    """The bytes of one batch of the training split."""
    split = Split.open(shards, "train")
    reader = Reader(split, TrainingMetrics("", "decoding", 0), Event())
    return [reader.read(sample_id, view) for sample_id in range(min(BATCH, len(split)))]


def images_per_second(images: Sequence[bytes], view: str, device: Device, seconds: float) -> float:
    """Decode the same batch again and again, after two turns of warming up."""
    threads = len(os.sched_getaffinity(0))
    decoder = Decoder([view], len(images), device, 0 if device == "gpu" else None, threads)

    def turn() -> None:
        decoder.decode({view: images})
        if device == "gpu":
            torch.cuda.synchronize()

    turn()
    turn()
    start, turns = perf_counter(), 0
    while perf_counter() - start < seconds:
        turn()
        turns += 1
    return turns * len(images) / (perf_counter() - start)
