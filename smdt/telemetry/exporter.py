"""The configuration of a run's metrics endpoints."""

from pydantic import BaseModel, ConfigDict, Field

from data_shards.exporter import Exporter

__all__ = ["Exporter", "TelemetryConfig"]


class TelemetryConfig(BaseModel):
    """Where the metrics of a run can be read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metrics_port: int | None = Field(9400, ge=0, lt=65536)
    """Port of local rank 0, each further rank one more; 0 takes any free port, null serves none."""
    metrics_address: str = "127.0.0.1"
    """Address to bind; anything but loopback shows the metrics to the network."""
    metrics_targets: str | None = None
    """Folder of the discovery entries; `<run>/targets` if null."""
