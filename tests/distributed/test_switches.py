"""Switches of the towers and of their optimizer under DeepSpeed, on two ranks."""

import json
from pathlib import Path

import pytest

from tests.distributed.runs import DEEPSPEED_FILES, deepspeed

SCRIPT = Path(__file__).parent / "switch_steps.py"


MODEL = {
    # layers large enough for ZeRO 3 to part them
    "width": 128,
    "layers": 2,
    "stem": {"kind": "resnet", "width": 8, "blocks": [1, 1, 1], "groups": 4},
}


@pytest.fixture
def find(write_config, tmp_path):
    """Run the steps on two ranks; return what rank 0 found."""

    def run(**model):
        config = write_config(tmp_path / "run", model={**MODEL, **model}, batch={"global": 8})
        out = tmp_path / "found.json"
        deepspeed(SCRIPT, 2, config, DEEPSPEED_FILES, out, seconds=840)
        return json.loads(out.read_text())

    return run


@pytest.mark.timeout(900)
def test_switches_do_what_they_say_on_every_zero_stage(find):
    found = find(dropout=0.3)
    assert set(found) == {"zero0", "zero1", "zero2", "zero3"}
    for stage, one in found.items():
        assert one["learned"] > 1e-3, stage
        assert one["checkpointing"] == 0, stage
        # a first step of Adam is the rate times what the gradient alone decides
        assert one["decay over layers"] < 1e-6, stage
        assert one["update without decay"] > 1e-4, stage


@pytest.mark.full
@pytest.mark.timeout(900)
def test_compiled_steps_are_those_of_eager_ones_but_for_rounding(find):
    found = find(dropout=0.0, compile=True)
    assert set(found) == {"zero2", "zero3"}
    assert max(one["compiled"] for one in found.values()) < 0.02
