import json
import socket
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, Counter

from data_shards.exporter import Exporter


@pytest.fixture
def registry():
    registry = CollectorRegistry()
    Counter("turns", "Turns", ("who",), registry=registry).labels("me").inc(5)
    return registry


def test_an_endpoint_serves_its_registry_and_says_where(registry, tmp_path):
    target = tmp_path / "targets" / "rank.json"
    with Exporter(registry, 0, "127.0.0.1", target) as exporter:
        (entry,) = json.loads(target.read_text())
        assert entry["targets"] == [f"127.0.0.1:{exporter.port}"]
        with urlopen(f"http://{entry['targets'][0]}/metrics") as answer:
            assert 'turns_total{who="me"} 5.0' in answer.read().decode()
    assert not target.exists()


def test_a_port_that_is_taken_ends_nothing(registry, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with Exporter(registry, taken, "127.0.0.1", tmp_path / "rank.json") as exporter:
            assert exporter.port != taken
            assert f":{exporter.port}" in (tmp_path / "rank.json").read_text()
