import json
import socket
from urllib.request import urlopen

from smdt.telemetry.exporter import Exporter
from smdt.telemetry.metrics import TrainingMetrics


def test_an_endpoint_serves_its_own_rank_and_says_where(tmp_path):
    metrics = TrainingMetrics("run", "retrieval", 3, host="here")
    metrics.steps.inc(5)
    target = tmp_path / "targets" / "rank.json"
    with Exporter(metrics.registry, 0, "127.0.0.1", target) as exporter:
        (entry,) = json.loads(target.read_text())
        assert entry["targets"] == [f"127.0.0.1:{exporter.port}"]
        with urlopen(f"http://{entry['targets'][0]}/metrics") as answer:
            text = answer.read().decode()
    line = 'smdt_steps_total{host="here",rank="3",run="run",stage="retrieval"} 5.0'
    assert line in text
    assert not target.exists()


def test_a_port_that_is_taken_ends_nothing(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        registry = TrainingMetrics("run", "retrieval", 0).registry
        with Exporter(registry, taken, "127.0.0.1", tmp_path / "rank.json") as exporter:
            assert exporter.port != taken
            assert f":{exporter.port}" in (tmp_path / "rank.json").read_text()
