import time

import torch
import yaml

from smdt.stages import config as configuration
from smdt.telemetry.metrics import TrainingMetrics
from smdt.train import describe_run
from tests.smdt.stages.test_config import MINIMAL


def test_what_a_failure_would_cost_is_counted_from_the_start_or_the_resume(tmp_path, monkeypatch):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(MINIMAL))
    config = configuration.load(tmp_path / "run.yaml")
    metrics = TrainingMetrics("a", "retrieval", 0)
    monkeypatch.setattr("smdt.train.run_info", lambda *_: {})  # asks the process group
    before = time.time()
    describe_run(config, metrics, {}, torch.device("cpu"))
    name = "smdt_checkpoint_last_success_timestamp_seconds"
    value = metrics.registry.get_sample_value(name, metrics.labels)
    assert value is not None
    assert before <= value <= time.time()
