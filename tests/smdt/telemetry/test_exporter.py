import json

import pytest

from data_shards.base.errors import InputError
from smdt.telemetry.exporter import TelemetryConfig
from smdt.telemetry.metrics import TrainingMetrics


@pytest.mark.parametrize(("port", "ranks"), [(65535, 1), (65528, 8), (0, 8), (None, 8)])
def test_ports_that_all_ranks_of_a_host_have(port, ranks):
    TelemetryConfig(metrics_port=port).check_ports(ranks)


@pytest.mark.parametrize(("port", "ranks", "most"), [(65535, 2, 65534), (65530, 8, 65528)])
def test_a_port_beyond_the_last_is_refused_with_one_that_fits(port, ranks, most):
    telemetry = TelemetryConfig(metrics_port=port)
    with pytest.raises(InputError, match=f"at most {most}, or to 0"):
        telemetry.check_ports(ranks)
    TelemetryConfig(metrics_port=most).check_ports(ranks)


def test_a_rank_without_a_port_says_so(tmp_path):
    metrics = TrainingMetrics("a", "retrieval", 1)
    telemetry = TelemetryConfig(metrics_port=65535)
    with pytest.raises(InputError, match=r"telemetry\.metrics_port is 65535"):
        telemetry.serve(
            metrics.registry, metrics.labels, entry="a", run_targets=tmp_path, port_offset=1
        )


@pytest.mark.parametrize("name", ["a/b", "..", "x[1]", "é", "a\nb", "\udcff", "n" * 300])
def test_odd_names_of_runs_have_an_entry_and_labels(tmp_path, name):
    metrics = TrainingMetrics(name, "retrieval", 0)
    telemetry = TelemetryConfig(metrics_port=0)
    with telemetry.serve(
        metrics.registry,
        metrics.labels,
        entry=f"{name}-rank-0",
        run_targets=tmp_path,
        port_offset=0,
    ):
        (entry,) = tmp_path.glob("*.json")
        (written,) = json.loads(entry.read_text())
        assert written["labels"]["run"] == metrics.labels["run"]
        assert metrics.labels["run"].encode()
