"""The configuration of a run's metrics, and the endpoint that each of its processes serves."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ConfigDict, Field

from data_shards.base.errors import InputError
from data_shards.base.exporter import Endpoint, Exporter, Tls
from data_shards.base.names import file_name
from smdt.telemetry.tensorboard import require_tensorboard

LAST_PORT = 65535


class TlsConfig(BaseModel):
    """PEM files for HTTPS of every endpoint of the run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    certificate: Path
    """Certificate of the hosts, with what is between it and its authority."""
    key: Path
    """Private key of the certificate."""
    client_ca: Path | None = None
    """Certificate authority of the allowed clients; null allows any client."""


class TelemetryConfig(BaseModel):
    """Addresses of the metrics of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metrics_port: int | None = Field(9400, ge=0, le=LAST_PORT)
    """Port of local rank 0, each further rank one more; 0 takes any free port, null serves none."""
    metrics_address: str = "127.0.0.1"
    """Address to bind; anything but loopback shows the metrics to the network."""
    metrics_targets: str | None = None
    """Folder of the discovery entries; `<run>/targets` if null."""
    tls: TlsConfig | None = None
    """Certificates of the endpoints; null serves plain HTTP."""
    tensorboard: bool = False
    """Also write TensorBoard's event files, to `<run>/tensorboard`."""
    device_tflops: float | None = Field(None, gt=0)
    """What a device can do at most in the run's precision, TFLOP/s without sparsity; null takes
    what is known of the GPU, and does not export the utilization where nothing is."""

    def check(self) -> None:
        """Check what can be checked before anything starts.

        Raises:
            InputError: the TLS files are wrong, or a package is missing.
        """
        if self.tensorboard:
            require_tensorboard()
        tls = self._tls()
        if tls is not None and self.metrics_port is not None:
            tls.check()

    def check_ports(self, ranks_per_host: int) -> None:
        """Check that there is a port for each rank of a host.

        Raises:
            InputError: there is not; the sentence gives a port from which there is.
        """
        port, last = self.metrics_port, LAST_PORT - ranks_per_host + 1
        if port is not None and port > last:
            raise InputError(
                f"telemetry.metrics_port is {port}, and {ranks_per_host} ranks on a host need the "
                f"ports {port} to {port + ranks_per_host - 1}, which end at {LAST_PORT}: set it to "
                f"at most {last}, or to 0 for free ports"
            )

    def _tls(self) -> Tls | None:
        files = self.tls
        return None if files is None else Tls(files.certificate, files.key, files.client_ca)

    def serve(
        self,
        registry: CollectorRegistry,
        labels: Mapping[str, str],
        *,
        entry: str,
        run_targets: Path,
        port_offset: int,
    ) -> AbstractContextManager[object]:
        """Return the endpoint of a process of the run, or nothing if none is wanted.

        Args:
            registry: what to serve.
            labels: of the process.
            entry: name of its discovery entry, any text; the file's name is made of it.
            run_targets: folder of the entries, where the configuration names none.
            port_offset: of the process, from local rank 0.

        Raises:
            InputError: the TLS files are wrong, there is no such port, or the address is not this
                machine's.
        """
        if self.metrics_port is None:
            return nullcontext()
        self.check_ports(max(port_offset + 1, 1))
        port = self.metrics_port + port_offset if self.metrics_port else 0
        targets = Path(self.metrics_targets or run_targets)
        endpoint = Endpoint(port, self.metrics_address, self._tls())
        return Exporter(registry, endpoint, targets / f"{file_name(entry)}.json", labels)
