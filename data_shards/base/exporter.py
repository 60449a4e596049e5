"""The metrics endpoint of one process and its entry for Prometheus' file-based discovery."""

import errno
import json
import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Condition
from types import TracebackType
from typing import Any, NoReturn, Self

from prometheus_client import CollectorRegistry, Metric, disable_created_metrics, start_http_server
from prometheus_client.registry import Collector

from data_shards.base.errors import InputError, Stopped, UserError

FINAL_SCRAPE_SECONDS = 30.0
"""Seconds that a failed process waits for one more scrape; `prometheus.yml` scrapes twice in it."""
ANSWER_SECONDS = 0.2
"""Longest time from the last figure to the network."""

WILDCARD_ADDRESSES = ("0.0.0.0", "::")  # noqa: S104 (recognised, not bound)

without_creation_times: Callable[[], None] = disable_created_metrics
"""When a counter was made says nothing, and doubles the series."""

_WRONG_FOLDER = (FileExistsError, NotADirectoryError, PermissionError)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files for HTTPS of an endpoint.

    Attributes:
        certificate: of this server, with what is between it and its authority.
        key: of the certificate.
        client_ca: authority of the allowed clients; None allows any client.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @classmethod
    def parse(cls, text: str) -> "Tls":
        """Return the files that a command line names, `certificate,key` or with a client CA.

        Raises:
            InputError: they are neither two nor three.
        """
        files = [Path(name) for name in text.split(",")]
        if len(files) not in (2, 3):
            raise InputError(
                f"--metrics-tls: '{text}' is not CERTIFICATE,KEY or CERTIFICATE,KEY,CA"
            )
        return cls(*files)

    def check(self) -> None:
        """Read the files as the server will.

        Raises:
            InputError: one of them can't be read, the key is encrypted, or it is not the key of
                the certificate.
        """
        for file in (self.certificate, self.key, self.client_ca):
            if file is not None and not file.is_file():
                raise InputError(f"TLS of the metrics: file not found: {file}")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

        def refuse() -> NoReturn:  # else OpenSSL asks a terminal for the pass phrase, and waits
            raise InputError(
                f"TLS of the metrics: the key {self.key} is encrypted, and nothing here asks for "
                f"its pass phrase: write it without one (openssl pkey -in {self.key} -out PLAIN), "
                "readable for this user alone"
            )

        try:
            context.load_cert_chain(self.certificate, self.key, refuse)
            context.load_verify_locations(self.client_ca or self.certificate)
        except OSError as error:
            files = [self.certificate, self.key, *([self.client_ca] if self.client_ca else [])]
            raise InputError(
                f"TLS of the metrics: {', '.join(map(str, files))} must be a certificate, its key "
                f"{'and an authority ' * (len(files) > 2)}in PEM form ({error})"
            ) from None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Address and TLS of the metrics endpoint.

    Attributes:
        port: to bind, 0 for any.
        address: to bind; anything but loopback shows the metrics to the network.
        tls: speaks HTTPS; None speaks HTTP.
    """

    port: int = 0
    address: str = "127.0.0.1"
    tls: Tls | None = None


LOOPBACK = Endpoint()
"""Any free port, for this machine alone."""


class Exporter:
    """Serves a registry over HTTP while it is open.

    A port that is taken never ends a run: a free one is used, and the discovery entry says which.
    A process that fails waits until its last figures are read, if they were read before: they show
    what went wrong.

    Args:
        registry: what to serve, complete.
        endpoint: where.
        target: file of the discovery entry, removed at exit.
        labels: of the process; `up` has them too, also if the process does not answer.

    Raises:
        InputError: the files of the endpoint's TLS are wrong, its address is not this machine's, or
            the entry's folder can't be.
        UserError: what may change soon: no free port, a full disk, storage that is away.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        endpoint: Endpoint,
        target: Path,
        labels: Mapping[str, str],
    ) -> None:
        without_creation_times()
        self._target = target
        self._scrapes = _Scrapes()
        registry.register(self._scrapes)
        tls = endpoint.tls
        if tls is not None:
            tls.check()
        files = (None, None, None) if tls is None else (tls.certificate, tls.key, tls.client_ca)
        certificate, key, client_ca = (None if file is None else str(file) for file in files)

        def serve(port: int) -> None:
            self._server, self._thread = start_http_server(
                port,
                endpoint.address,
                registry,
                certfile=certificate,
                keyfile=key,
                client_cafile=client_ca,
                client_auth_required=client_ca is not None,
            )

        try:
            serve(endpoint.port)
        except OSError as error:
            _log.warning("metrics port %d: %s; taking a free one", endpoint.port, error.strerror)
            try:
                serve(0)
            except OSError as again:
                kind = InputError if _is_no_address_of_ours(again) else UserError
                raise kind(
                    f"metrics can't be served at {endpoint.address} ({again.strerror}): let it be "
                    "127.0.0.1, 0.0.0.0 or an address of this machine"
                ) from None
        if tls is not None:
            # Else a client that says nothing would keep all others waiting.
            listening: Any = self._server.socket
            listening.do_handshake_on_connect = False
        self.port = self._server.server_port
        scheme = {} if tls is None else {"__scheme__": "https"}
        where = f"{_reachable(endpoint.address)}:{self.port}"
        entry = [{"targets": [where], "labels": {**labels, **scheme}}]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # Prometheus reads every *.json at any moment: the entry appears whole.
            unpublished = target.with_name(target.name + ".tmp")
            unpublished.write_text(json.dumps(entry) + "\n")
            unpublished.replace(target)
        except OSError as error:
            self._close()
            kind = InputError if isinstance(error, _WRONG_FOLDER) else UserError
            raise kind(
                f"the metrics' entry can't be written to {target.parent} ({error.strerror}): name "
                "a folder that you can write (telemetry.metrics_targets, --metrics-targets)"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, UserError) and not isinstance(error, Stopped):
            self._scrapes.wait_for_another(FINAL_SCRAPE_SECONDS)
        self._target.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Scrapes(Collector):
    """Counts scrapes of the registry; it is collected last, as it is registered last."""

    def __init__(self) -> None:
        self._count = 0
        self._another = Condition()

    def collect(self) -> Iterator[Metric]:
        """Count a scrape; return no metrics."""
        with self._another:
            self._count += 1
            self._another.notify_all()
        return iter(())

    def describe(self) -> Iterator[Metric]:
        """Return no metrics."""
        return iter(())

    def wait_for_another(self, seconds: float) -> None:
        """Wait until one more scrape is over; not at all if there never was one."""
        with self._another:
            seen = self._count
            if not seen:
                return
            self._another.wait_for(lambda: self._count > seen, seconds)
        time.sleep(ANSWER_SECONDS)


def _is_no_address_of_ours(error: OSError) -> bool:
    unknown_name = isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME
    return unknown_name or error.errno == errno.EADDRNOTAVAIL


def _reachable(address: str) -> str:
    """Return under what others find an endpoint that was bound to `address`."""
    if address in WILDCARD_ADDRESSES:
        return socket.gethostname()
    return f"[{address}]" if ":" in address else address
