"""The metrics endpoint of one process and its entry for Prometheus' file-based discovery."""

import json
import logging
from pathlib import Path
from typing import Self

from prometheus_client import CollectorRegistry, start_http_server

_log = logging.getLogger(__name__)


class Exporter:
    """Serves a registry over HTTP while it is open.

    A port that is taken never ends a run: a free one is used, and the discovery entry says which.

    Args:
        registry: what to serve.
        port: port to bind, 0 for any.
        address: address to bind.
        target: file of the discovery entry, removed at exit.
    """

    def __init__(self, registry: CollectorRegistry, port: int, address: str, target: Path) -> None:
        self._target = target
        try:
            self._server, self._thread = start_http_server(port, address, registry)
        except OSError as error:
            _log.warning("metrics port %d: %s; taking a free one", port, error.strerror)
            self._server, self._thread = start_http_server(0, address, registry)
        self.port = self._server.server_port
        target.parent.mkdir(parents=True, exist_ok=True)
        entry = [{"targets": [f"{address}:{self.port}"]}]
        # Prometheus reads every *.json at any moment: the entry appears whole.
        unpublished = target.with_name(target.name + ".tmp")
        unpublished.write_text(json.dumps(entry) + "\n")
        unpublished.replace(target)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._target.unlink(missing_ok=True)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
