"""`smdt align` on ranks that are killed."""

import random
import signal
import time

import pytest
import yaml

from data_shards.format.manifest import load
from data_shards.inspect.verify import verify
from smdt.stages import config as configuration
from tests.checkpoints import save_untrained
from tests.distributed.runs import files_of, kill, processes_of, wait_for


@pytest.fixture
def trained(world, tmp_path):
    """A checkpoint whose generators take a few seconds for the small world."""
    path = tmp_path / "alignment.yaml"
    content = {
        "stage": "alignment",
        "run": {"name": "test", "out": str(tmp_path / "run")},
        "data": {"shards": str(world)},
        "geometry": {"panorama_size": [32, 128]},
        "model": {"generator_width": 32, "discriminator_width": 2},
    }
    path.write_text(yaml.safe_dump(content))
    folder = tmp_path / "step-00000001"
    save_untrained(folder, configuration.load(path))
    return folder


@pytest.mark.full
@pytest.mark.timeout(900)
def test_aligned_shards_are_the_same_whatever_kills_the_job(
    trained, start_annotating, world, tmp_path
):
    whole, out = tmp_path / "whole", tmp_path / "killed"
    process = start_annotating("align", trained, whole, ranks=1)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert verify(whole, workers=1).damages == []
    assert load(whole).made["aligned"]["image_size"] == [32, 128]

    moments = random.Random(5)
    for ranks, seen in ((2, "*"), (1, "*.parquet"), (3, "*")):
        process = start_annotating("align", trained, out, ranks)
        files = set(out.rglob(seen))
        wait_for(lambda seen=seen, files=files: set(out.rglob(seen)) != files, process)
        time.sleep(moments.uniform(0, 1.5))
        kill(processes_of(out))
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, "the job was over before its end came"
    assert 0 < len(list(out.rglob("*.parquet"))) < len(list(whole.rglob("*.parquet")))

    process = start_annotating("align", trained, out, ranks=2)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert files_of(out) == files_of(whole)
