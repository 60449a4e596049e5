"""A real Prometheus reads an endpoint that answers its clients alone."""

import pytest
from prometheus_client import CollectorRegistry, Gauge

from smdt.telemetry.exporter import TelemetryConfig
from tests.monitoring.server import Prometheus
from tests.pki import make_pki


@pytest.mark.distributed
@pytest.mark.parametrize(("client", "up"), [("client", 1.0), ("stranger", 0.0)])
def test_prometheus_is_answered_if_the_authority_has_signed_it(tmp_path, client, up):
    make_pki(tmp_path)
    names = {"ca_file": "ca.pem", "cert_file": f"{client}.pem", "key_file": f"{client}.key"}
    tls_config = {option: str(tmp_path / name) for option, name in names.items()}
    prometheus = Prometheus(tmp_path / "prometheus", tls_config)
    files = {"certificate": "server.pem", "key": "server.key", "client_ca": "ca.pem"}
    telemetry = TelemetryConfig(
        metrics_port=0, tls={option: tmp_path / name for option, name in files.items()}
    )
    registry = CollectorRegistry()
    Gauge("figure", "Figure", registry=registry).set(7)
    try:
        with telemetry.serve(
            registry, {"run": "a"}, entry="a", run_targets=prometheus.targets, port_offset=0
        ):
            ((series, value),) = prometheus.wait_until(
                lambda: prometheus.query('up{run="a"}'), "a scrape", 30
            )
            assert value == up
            assert series["instance"].startswith("127.0.0.1:")
            assert [value for _, value in prometheus.query("figure")] == [7.0] * int(up)
    finally:
        prometheus.close()
